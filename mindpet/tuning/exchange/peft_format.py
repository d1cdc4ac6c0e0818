"""Reading LoRA that Hugging Face PEFT has saved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mindpet.storage.reader import read_tensor_file, require_file
from mindpet.tuning.config import LoraConfig
from mindpet.tuning.exchange.adapter import Adapter
from mindpet.tuning.exchange.folder import TENSOR_FILE, host_tensors
from mindpet.tuning.exchange.record import explain
from mindpet.utils.exceptions import InputError

__all__ = ["is_peft", "read_peft"]

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<path>.+)\.(?:lora_(?P<dense>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
_FIELDS = ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "rank_pattern", "alpha_pattern")
# Keys that say nothing of the numbers, or nothing that the tensors do not show by themselves.
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size"),
    *("revision", "target_modules", "task_type"),
}
# Others, such as PiSSA, may have changed the base too.
_HARMLESS_STARTS = (None, True, False, "gaussian")


def is_peft(config: Any) -> bool:
    """Tell whether the content of an `adapter_config.json` is PEFT's."""
    return isinstance(config, Mapping) and "peft_type" in config


def read_peft(path: Path, config: Mapping[str, Any]) -> Adapter:
    """Read the tensors beside a PEFT configuration. What is adapted is what the tensors name.

    Args:
        path: The configuration's file.
        config: Its content.

    Raises:
        InputError: Another method than LoRA, a feature that this LoRA has not, or tensors by other names.
    """
    if config["peft_type"] != "LORA":
        raise InputError(f"{path}: PEFT's {config['peft_type']!r} cannot be loaded, only 'LORA'; train it here.")
    _refuse_features(path, config)
    file = require_file(path.with_name(TENSOR_FILE))
    tensors, targets = {}, []
    for name, tensor in host_tensors(read_tensor_file(file)).items():
        if not name.startswith(_PREFIX):
            raise InputError(f"{file}: {name} does not begin with {_PREFIX}; save the adapter again with PEFT.")
        own = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if match := _LORA.fullmatch(own):
            targets.append(match["path"])
            side = match["dense"] or match["embedding"]
            own = f"{match['path']}.mindpet_delta_lora_{side.lower()}"
        tensors[own] = tensor
    if not targets:
        raise InputError(f"{file} holds no tensor of LoRA; save the adapter again with PEFT.")
    saved = _find_saved(file, config, tensors)
    fields = {key: config[key] for key in _FIELDS if key in config}
    try:
        lora = LoraConfig(target_modules=_find_targets(file, config, targets), modules_to_save=saved, **fields)
    except ValidationError as error:
        raise InputError(f"{path} has a value that cannot be used ({explain(error)}); correct the field.") from error
    return Adapter(path.parent, (lora,), tensors)


def _find_targets(file: Path, config: Mapping[str, Any], paths: list[str]) -> str | tuple[str, ...]:
    """Return the configuration's own entries, so that a layer whose tensors are lost is missed; else the paths.

    Where PEFT leaves layers out again, or takes what depends on its model, the tensors alone say what was adapted.

    Raises:
        InputError: An entry has no tensor.
    """
    given = config.get("target_modules")
    left_out = config.get("exclude_modules") or config.get("layers_to_transform") is not None
    if isinstance(given, list) and not left_out:
        lost = [entry for entry in given if not any(_ends_with(path, entry) for path in paths)]
        _refuse_lost(file, "target_modules", lost)
        return tuple(given)
    if isinstance(given, str) and not left_out and re.search(r"[^\w.-]", given):
        return given
    return tuple(dict.fromkeys(paths))


def _find_saved(file: Path, config: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """Return the entries of modules_to_save that have tensors; PEFT names heads there that a model may lack.

    Raises:
        InputError: None of them has.
    """
    given = config.get("modules_to_save") or ()
    found = tuple(entry for entry in given if any(_is_below(name, entry) for name in names))
    if not found:
        _refuse_lost(file, "modules_to_save", given)
    return found


def _refuse_lost(file: Path, field: str, entries: Sequence[Any]) -> None:
    if entries:
        raise InputError(
            f"{file} holds no tensor of {', '.join(map(str, entries))}, which {field} names; fetch the file again, or"
            " take out what the model has not."
        )


def _ends_with(path: str, entry: Any) -> bool:
    return isinstance(entry, str) and f".{path}".endswith(f".{entry}")


def _refuse_features(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a key that is set and would change the numbers."""
    if config.get("init_lora_weights") not in _HARMLESS_STARTS:
        raise InputError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r}, which may have changed the base; save the"
            " adapter as plain LoRA, as PEFT's guide for this start says."
        )
    for key, value in config.items():
        if value and key not in _HARMLESS and key not in _FIELDS and key != "init_lora_weights":
            raise InputError(f"{path}: {key} is {value!r}, which LoRA here has not; merge the adapter with PEFT.")


def _is_below(name: str, entry: Any) -> bool:
    return isinstance(entry, str) and f".{entry}." in f".{name}"
