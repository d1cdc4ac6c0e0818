"""Adapters that others wrote: checkpoints of MindPet 1.x and MindFormers, and MindFormers 2's adapter folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mindpet.graph.checksums import read_checkpoint
from mindpet.graph.load import is_state
from mindpet.graph.parameters import canonical_name
from mindpet.storage.reader import read_json, read_tensor_file, read_text
from mindpet.tuning.config import LoraConfig
from mindpet.tuning.exchange.adapter import Adapter
from mindpet.tuning.exchange.record import explain
from mindpet.tuning.exchange.values import HostTensor, read
from mindpet.utils.exceptions import InputError

__all__ = ["MANIFEST_FILE", "read_ckpt", "read_mindformers"]

MANIFEST_FILE = "mindformers_adapter_config.json"
_FORMAT = "mindformers_pynative_lora_adapter_v1"
_TRACKER = "latest_checkpointed_iteration.txt"
_OPTIMIZER_FILE = re.compile(r"(?:.*-)?opt-\d+-\d+\.safetensors")
_LORA_PAIR = re.compile(r"(?P<path>.+)\.(?:mindpet_delta_|tk_delta_)?lora_(?P<side>[abAB])(?:\.weight)?")
# Fields that say how LoRA starts, which loading replaces.
_STARTS = {"lora_a_std", "lora_b_std", "lora_a_init", "lora_b_init", "pet_type"}


def read_ckpt(path: Path) -> Adapter:
    """Read a MindSpore checkpoint, without the optimizer's state that 1.x wrote into it.

    Raises:
        InputError: It cannot be read, differs from its checksums, or gives a parameter under two names.
    """
    found = read_checkpoint(path)
    held = {canonical_name(name) for name in found}
    kept = {name: read(tensor) for name, tensor in found.items() if not is_state(canonical_name(name), held)}
    return Adapter(path, None, _rename(path, kept))


def read_mindformers(folder: Path) -> Adapter:
    """Read a folder of MindFormers 2: one iteration's, or the one above, which says what the last iteration was.

    The layers are those that the tensors name. MoE experts and files of several devices, which hold parts of tensors,
    are refused.

    Raises:
        InputError: The manifest is of another form, the tensors are damaged, or they disagree with the manifest.
    """
    manifest = folder / MANIFEST_FILE
    settings = _read_manifest(manifest)
    home = _find_iteration(folder)
    tensors: dict[str, HostTensor] = {}
    for file in sorted(home.glob("*.safetensors")):
        if _OPTIMIZER_FILE.fullmatch(file.name):
            continue
        content = read_tensor_file(file)
        if twice := sorted(tensors.keys() & content.tensors.keys()):
            raise InputError(f"{file} holds {twice[0]} a second time, so it is a part; gather the adapter first.")
        tensors |= {name: HostTensor(values, content.dtypes[name]) for name, values in content.tensors.items()}
    renamed = _rename(home, tensors)
    targets = sorted({match["path"] for name in tensors if (match := _LORA_PAIR.fullmatch(name))})
    if not targets:
        raise InputError(f"{home} holds no LoRA of dense layers; MindFormers' adapters of experts cannot be loaded.")
    return Adapter(home, (_make_config(manifest, settings, targets),), renamed)


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest's `lora_config`."""
    content = read_json(path)
    form = content.get("format") if isinstance(content, Mapping) else None
    settings = content.get("lora_config") if isinstance(content, Mapping) else None
    if form != _FORMAT or not isinstance(settings, dict):
        raise InputError(
            f"{path} has the format {form!r} and {'a' if isinstance(settings, dict) else 'no'} lora_config; {_FORMAT!r}"
            " with one can be loaded. Save the adapter with another version of MindFormers."
        )
    missing = [key for key in ("lora_rank", "lora_alpha") if key not in settings]
    if missing:
        raise InputError(f"{path}: lora_config has no {missing[0]}, which the numbers depend on; add it.")
    return settings


def _find_iteration(folder: Path) -> Path:
    """Return the folder with the tensors: this one, or the last iteration below it."""
    tracker = folder / _TRACKER
    if not tracker.exists():
        return folder
    number = read_text(tracker).strip()
    if not re.fullmatch(r"\d{1,8}", number):
        raise InputError(f"{tracker} holds {number!r}, expected is the number of an iteration; correct it.")
    return folder / f"iteration_{int(number):08d}"


def _make_config(manifest: Path, settings: Mapping[str, Any], targets: list[str]) -> LoraConfig:
    """Return the configuration for layers that the tensors name."""
    fields = {
        key: value for key, value in settings.items() if key not in _STARTS | {"target_modules", "exclude_layers"}
    }
    try:
        return LoraConfig(target_modules=tuple(targets), **fields)
    except ValidationError as error:
        raise InputError(f"{manifest}: lora_config cannot be used ({explain(error)}); correct the field.") from error


def _rename(path: Path, tensors: Mapping[str, HostTensor]) -> dict[str, HostTensor]:
    """Return tensors by canonical name."""
    renamed: dict[str, HostTensor] = {}
    for name, tensor in tensors.items():
        match = _LORA_PAIR.fullmatch(name)
        own = f"{match['path']}.mindpet_delta_lora_{match['side'].lower()}" if match else canonical_name(name)
        if own in renamed:
            raise InputError(f"{path} gives {own} under two names; keep one of them.")
        renamed[own] = tensor
    return renamed
