"""Writing the active adapter as Hugging Face PEFT writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspore import nn

from mindpet.tuning.config import IA3Config, LoraConfig, PrefixConfig, PTuning2Config, VeraConfig
from mindpet.tuning.exchange.active import ActiveAdapter
from mindpet.tuning.exchange.folder import CONFIG_FILE, PROJECTION_FILE, TENSOR_FILE, Content
from mindpet.tuning.exchange.peft import lora, prompt, tokens, vera
from mindpet.tuning.exchange.peft.frame import PREFIX, Family
from mindpet.tuning.exchange.peft.matching import as_pattern, name_layers
from mindpet.tuning.exchange.peft.read import FAMILIES
from mindpet.tuning.exchange.peft.saved import check_layout, holds_transposed, list_own, write_own_tensors
from mindpet.tuning.exchange.values import HostTensor, read
from mindpet.tuning.state import PeftState
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK, file_name

__all__ = ["as_peft"]

# The ends of the names of classes, which are those of transformers, and the task that PEFT makes of it.
_TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
_HEAD = "classifier"
_BY_CONFIG = {family.config: family for family in FAMILIES.values()}


def as_peft(net: nn.Cell, state: PeftState, base: str | None) -> Content:
    """Return the active adapter of a network as PEFT keeps it, without the room for others.

    Args:
        net: A network with one method attached, which PEFT has.
        state: What is attached to it.
        base: The name or folder of the model that it was trained on.

    Raises:
        InputError: PEFT has not the method, or cannot express it.
    """
    adapter = ActiveAdapter(net, state)
    if isinstance(adapter.config, PrefixConfig | PTuning2Config):
        found = _as_prompt(adapter)
    elif type(adapter.config) in _BY_CONFIG:
        found = _as_layers(adapter, _BY_CONFIG[type(adapter.config)])
    else:
        raise InputError(f"PEFT has nothing like {adapter.config.method}; keep it with mindpet.save_adapter")
    found.objects[CONFIG_FILE]["base_model_name_or_path"] = base
    return found


def _write_common(adapter: ActiveAdapter, needs_task: bool) -> dict[str, Any]:
    """Return the keys that are the same for all methods.

    Args:
        adapter: The adapter.
        needs_task: Whether PEFT applies the adapter only if it knows the task; else a classifier without a trained
            head, for which PEFT would look, is named no task.
    """
    name = type(adapter.net).__name__
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
    is_headless = task == "SEQ_CLS" and _HEAD not in adapter.saved and not needs_task
    return {
        "inference_mode": True,
        "modules_to_save": adapter.saved or None,
        "task_type": None if is_headless else task,
    }


def _write_own(adapter: ActiveAdapter, adapted: Sequence[str], bias: str, prefix: str) -> dict[str, HostTensor]:
    """Return the network's own trained tensors by PEFT's names."""
    check_layout(adapter.view, adapter.saved)
    trained = adapter.trained
    return write_own_tensors(list_own(trained, adapter.saved, adapted, bias, prefix), trained, adapter.base)


def _as_prompt(adapter: ActiveAdapter) -> Content:
    feeds = adapter.state.own_feeds
    made = prompt.make_prompt(adapter.config, adapter.parts(one.path for one in feeds))
    own = _write_own(adapter, (), "none", prompt.OWN_PREFIX)
    sizes = prompt.write_config(adapter.config, {one.path: one.attention for one in feeds})
    content = {"peft_type": prompt.PEFT_TYPE} | _write_common(adapter, needs_task=True) | sizes
    if content["task_type"] == "SEQ_CLS" and _HEAD not in adapter.saved:  # without which PEFT reads no prompt for it
        content["modules_to_save"] = [*adapter.saved, _HEAD]
        own |= _read_head(adapter.state)
    is_table = isinstance(adapter.config, PTuning2Config) and not adapter.config.prefix_projection
    makers = {name: tensor for name, tensor in adapter.values.items() if DELTA_MARK in name}
    files = {TENSOR_FILE: {prompt.PROMPT: made} | own}
    if is_table:
        return Content({CONFIG_FILE: content}, files)
    metadata = {PROJECTION_FILE: prompt.describe_projection(adapter.config, makers, made)}
    return Content({CONFIG_FILE: content}, files | {PROJECTION_FILE: makers}, metadata)


def _read_head(state: PeftState) -> dict[str, HostTensor]:
    """Return the network's classifier, which no adapter has trained, by PEFT's names."""
    return {
        f"{prompt.OWN_PREFIX}{file_name(name)}": read(parameter)
        for name, parameter in state.parameters.items()
        if name.startswith(f"{_HEAD}.")
    }


def _as_layers(adapter: ActiveAdapter, family: Family) -> Content:
    if family is tokens.FAMILY and adapter.saved:
        raise InputError(
            "PEFT's trainable tokens take no modules_to_save; train without, or keep it with mindpet.save_adapter"
        )
    paths = [one.path for one in adapter.state.own_replacements]
    config, held = adapter.config, adapter.parts(paths)
    if isinstance(config, LoraConfig):
        config, held = lora.as_plain_lora(config, held)
    if isinstance(config, IA3Config):
        config = config.model_copy(update={"feedforward_modules": tuple(_inner(adapter, paths))})
    layers = {path: adapter.view.cells[path] for path in paths}
    tensors = {}
    for path, layer in layers.items():
        for leaf in family.leaves(config, path, layer):
            tensor = held[path][leaf.ours]
            tensors[f"{PREFIX}{path}.{leaf.theirs}"] = HostTensor(tensor.values.reshape(leaf.shape), tensor.dtype)
    if isinstance(config, VeraConfig):
        tensors |= _read_pair(adapter, paths[0], vera.make_pair(config, layers))
    if family is tokens.FAMILY:
        tensors |= tokens.copy_for_heads(adapter.view, tensors)
    tensors |= _write_own(adapter, paths, getattr(config, "bias", "none"), PREFIX)
    content = {"peft_type": family.peft_type} | _write_common(adapter, needs_task=False)
    if family is tokens.FAMILY:
        del content["modules_to_save"]  # which PEFT's configuration of this method has not
    content |= {name: _as_json(getattr(config, name)) for name in family.fields} | dict(family.always)
    content |= _name_targets(adapter, list(adapter.view.cells), paths)
    if "fan_in_fan_out" in content:
        content["fan_in_fan_out"] = holds_transposed(adapter.view)
    return Content({CONFIG_FILE: content}, {TENSOR_FILE: tensors})


def _read_pair(adapter: ActiveAdapter, path: str, made: Mapping[str, HostTensor]) -> dict[str, HostTensor]:
    """Return the pair that VeRA's layers share as they hold it, whatever made it."""
    held = (adapter.slots[path, f"{STATE_MARK}vera_{side}"] for side in "ab")
    pairs = zip(made.items(), held, strict=True)
    return {name: HostTensor(slot.read(tensor.shape), tensor.dtype) for (name, tensor), slot in pairs}


def _name_targets(adapter: ActiveAdapter, candidates: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Return `target_modules`, and for IA3 which of them have their input scaled.

    Args:
        adapter: The adapter.
        candidates: Every cell of the network, as PEFT refuses a name that also fits what it cannot adapt.
        paths: The adapted layers.
    """
    entries = adapter.entries("target_modules")
    if not isinstance(adapter.config, IA3Config):
        return {"target_modules": name_layers(entries, paths, candidates)}
    inner = _inner(adapter, paths)
    for targets, feedforward in ((entries, adapter.entries("feedforward_modules")), (list(paths), inner)):
        found = [path for path in paths if path.endswith(tuple(feedforward))]  # PEFT's rule for these
        # PEFT wants each of them among the targets, by the same name.
        if name_layers(targets, paths, candidates) == targets and found == inner and set(feedforward) <= set(targets):
            return {"target_modules": targets, "feedforward_modules": feedforward}
    return {"target_modules": as_pattern(paths), "feedforward_modules": as_pattern(inner)}


def _inner(adapter: ActiveAdapter, paths: Sequence[str]) -> list[str]:
    """Return the layers whose input IA3 scales."""
    return [path for path in paths if adapter.state.cells[path].feedforward]


def _as_json(value: Any) -> Any:
    """Return a value as PEFT writes it: a whole number as an int."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    return int(value) if isinstance(value, float) and value == int(value) else value
