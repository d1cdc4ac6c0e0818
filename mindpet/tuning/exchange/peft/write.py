"""Writing the active adapter as Hugging Face PEFT writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mindspore import nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.capacity import AttachedNetwork, slots_of
from mindpet.tuning.config import IA3Config, LoraConfig, PrefixConfig, PTuning2Config, VeraConfig
from mindpet.tuning.exchange.own import read_own
from mindpet.tuning.exchange.peft import lora, prompt, tokens, vera
from mindpet.tuning.exchange.peft.frame import PREFIX, Family
from mindpet.tuning.exchange.peft.matching import as_pattern, name_layers
from mindpet.tuning.exchange.peft.read import FAMILIES
from mindpet.tuning.exchange.peft.saved import list_own, write_own_tensors
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.state import PeftState
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK, file_name

__all__ = ["PeftFolder", "as_peft"]

# The ends of the names of classes, which are those of transformers, and the task that PEFT makes of it.
_TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}
_HEAD = "classifier"
_BY_CONFIG = {family.config: family for family in FAMILIES.values()}


@dataclass(frozen=True)
class PeftFolder:
    """What a folder of PEFT's is to hold.

    Attributes:
        config: The content of `adapter_config.json`.
        tensors: By PEFT's names.
        projection: What makes the prompt of a prefix, by our names; empty where the prompt itself is trained.
    """

    config: dict[str, Any]
    tensors: dict[str, HostTensor]
    projection: dict[str, HostTensor]


def as_peft(net: nn.Cell, state: PeftState, base: str | None) -> PeftFolder:
    """Return the active adapter of a network as PEFT keeps it, without the room for others.

    Args:
        net: A network with one method attached, which PEFT has.
        state: What is attached to it.
        base: The name or folder of the model that it was trained on.

    Raises:
        InputError: PEFT has not the method, or cannot express it.
    """
    adapter = _Active(net, state)
    if isinstance(adapter.config, PrefixConfig | PTuning2Config):
        found = _as_prompt(adapter)
    elif type(adapter.config) in _BY_CONFIG:
        found = _as_layers(adapter, _BY_CONFIG[type(adapter.config)])
    else:
        raise InputError(f"PEFT has nothing like {adapter.config.method}; keep it with mindpet.save_adapter")
    found.config["base_model_name_or_path"] = base
    return found


class _Active:
    """The active adapter of a network, as writing needs it.

    Args:
        net: The network.
        state: What is attached to it.
    """

    def __init__(self, net: nn.Cell, state: PeftState) -> None:
        self.net, self.state = net, state
        (self.config,) = state.configs
        self.view = AttachedNetwork(net, state)
        matched = [path for match in state.matches if match.field == "modules_to_save" for path in match.paths]
        self.saved = list(dict.fromkeys(matched))

    @cached_property
    def values(self) -> dict[str, HostTensor]:
        """Its own values, by canonical name."""
        return read_own(self.net)

    @cached_property
    def parts(self) -> dict[str, dict[str, HostTensor]]:
        """The values of each cell, by the cell's path and the parameter's name in it."""
        parts: dict[str, dict[str, HostTensor]] = {}
        for (path, inner), slot in slots_of(self.state).items():
            name = canonical_name(slot.name)
            if name in self.values:
                parts.setdefault(path, {})[inner] = self.values[name]
        return parts

    def common(self, with_head: bool) -> dict[str, Any]:
        """Return the keys that are the same for all methods.

        Args:
            with_head: Whether the task is named only where a head is trained: PEFT expects one for a classifier.
        """
        name = type(self.net).__name__
        task = next((task for end, task in _TASKS.items() if name.endswith(end)), None)
        is_headless = task == "SEQ_CLS" and _HEAD not in self.saved and with_head
        return {
            "inference_mode": True,
            "modules_to_save": self.saved or None,
            "task_type": None if is_headless else task,
        }

    def own_tensors(self, adapted: Sequence[str], bias: str, prefix: str) -> dict[str, HostTensor]:
        """Return the network's own trained tensors by PEFT's names."""
        trained = {file_name(name): self.values[canonical_name(name)] for name in self.state.marked}
        base = {
            file_name(name): HostTensor(values, self.values[canonical_name(name)].dtype)
            for name, values in self.state.marked.items()
        }
        return write_own_tensors(list_own(trained, self.saved, adapted, bias, prefix), trained, base)

    def entries(self, field: str) -> list[str]:
        """Return what the configuration, or the architecture, names in a field."""
        return [match.entry for match in self.state.matches if match.field == field]


def _as_prompt(adapter: _Active) -> PeftFolder:
    feeds = adapter.state.own_feeds
    held = {one.path: adapter.parts[one.path] for one in feeds}
    made = prompt.make_prompt(adapter.config, held)
    own = adapter.own_tensors((), "none", prompt.OWN_PREFIX)
    sizes = prompt.write_config(adapter.config, {one.path: one.attention for one in feeds})
    content = {"peft_type": prompt.PEFT_TYPE} | adapter.common(with_head=False) | sizes
    is_table = isinstance(adapter.config, PTuning2Config) and not adapter.config.prefix_projection
    makers = {name: tensor for name, tensor in adapter.values.items() if DELTA_MARK in name}
    return PeftFolder(content, {prompt.PROMPT: made} | own, {} if is_table else makers)


def _as_layers(adapter: _Active, family: Family) -> PeftFolder:
    if family is tokens.FAMILY and adapter.saved:
        raise InputError(
            "PEFT's trainable tokens take no modules_to_save; train without, or keep it with mindpet.save_adapter"
        )
    paths = [one.path for one in adapter.state.own_replacements]
    config, held = adapter.config, {path: adapter.parts[path] for path in paths}
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
    tensors |= adapter.own_tensors(paths, getattr(config, "bias", "none"), PREFIX)
    content = {"peft_type": family.peft_type} | adapter.common(with_head=True)
    if family is tokens.FAMILY:
        del content["modules_to_save"]  # which PEFT's configuration of this method has not
    content |= {name: _as_json(getattr(config, name)) for name in family.fields} | dict(family.always)
    return PeftFolder(content | _name_targets(adapter, family.candidates(adapter.view), paths), tensors, {})


def _read_pair(adapter: _Active, path: str, made: Mapping[str, HostTensor]) -> dict[str, HostTensor]:
    """Return the pair that VeRA's layers share as they hold it, whatever made it."""
    slots = slots_of(adapter.state)
    held = (slots[path, f"{STATE_MARK}vera_{side}"] for side in "ab")
    pairs = zip(made.items(), held, strict=True)
    return {name: HostTensor(slot.read(tensor.shape), tensor.dtype) for (name, tensor), slot in pairs}


def _name_targets(adapter: _Active, candidates: Sequence[str], paths: Sequence[str]) -> dict[str, Any]:
    """Return `target_modules`, and for IA3 which of them have their input scaled."""
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


def _inner(adapter: _Active, paths: Sequence[str]) -> list[str]:
    """Return the layers whose input IA3 scales."""
    return [path for path in paths if adapter.state.cells[path].feedforward]


def _as_json(value: Any) -> Any:
    """Return a value as PEFT writes it: a whole number as an int."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    return int(value) if isinstance(value, float) and value == int(value) else value
