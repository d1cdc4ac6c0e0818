"""Reading what Hugging Face PEFT has saved, exactly or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from mindpet.storage.reader import read_tensor_file, require_file
from mindpet.tuning.capacity import AttachedNetwork
from mindpet.tuning.config import PeftConfig, VeraConfig
from mindpet.tuning.exchange.adapter import Adapter, find_bad_values
from mindpet.tuning.exchange.folder import TENSOR_FILE, host_tensors
from mindpet.tuning.exchange.peft import ia3, lora, prompt, tokens, vera
from mindpet.tuning.exchange.peft.frame import PREFIX, Family, OwnParameter, Source, widen
from mindpet.tuning.exchange.peft.matching import find_adapted, find_saved, pin
from mindpet.tuning.exchange.peft.saved import find_base, read_own_tensors
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.layers import Network
from mindpet.tuning.state import state_of
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK, file_name

__all__ = ["FAMILIES", "PEFT_TYPES", "is_peft", "read_peft"]

FAMILIES = {family.peft_type: family for family in (lora.FAMILY, vera.FAMILY, ia3.FAMILY, tokens.FAMILY)}
PEFT_TYPES = (*FAMILIES, prompt.PEFT_TYPE)

_PICKLE = "adapter_model.bin"
_FRAMEWORKS = ("pt", "np", "tf", "flax", "mlx")  # what the metadata of a file of tensors may name as its format


def is_peft(config: Any) -> bool:
    """Tell whether the content of an `adapter_config.json` is PEFT's."""
    return isinstance(config, Mapping) and "peft_type" in config


def read_peft(path: Path, config: Mapping[str, Any], net: nn.Cell) -> Adapter:
    """Read the folder of a PEFT configuration for a network, plain or attached.

    Which layers are adapted must be the same by the configuration, in which PEFT looks for them, and by the tensors.

    Args:
        path: The configuration's file.
        config: Its content.
        net: The network; it is left as it is.

    Raises:
        InputError: A method or feature that is not known here, a tensor that is missing, left over, misshapen or no
            finite floating-point numbers, or another network.
    """
    peft_type = config["peft_type"]
    if peft_type not in PEFT_TYPES:
        raise InputError(
            f"{path}: peft_type is {peft_type!r}, and {', '.join(PEFT_TYPES)} can be read; merge the adapter into its"
            " base with PEFT, or train it here."
        )
    source = _open(path, config, net)
    own_method = _read_prompt if peft_type == prompt.PEFT_TYPE else _read_layers
    adapter_config, tensors, used = own_method(source)
    left = sorted(source.tensors.keys() - used - find_base(source))
    source.refuse_tensors(f"{name} {_explain_left_over(name, source)}" for name in left)
    return Adapter(path.parent, (adapter_config,), tensors)


def _open(path: Path, config: Mapping[str, Any], net: nn.Cell) -> Source:
    file = path.with_name(TENSOR_FILE)
    if not file.exists() and path.with_name(_PICKLE).exists():
        raise InputError(
            f"{path.with_name(_PICKLE)} is a pickle, which could run code, and {TENSOR_FILE} is missing; save the"
            " adapter again with safe_serialization=True."
        )
    content = read_tensor_file(require_file(file))
    form = content.metadata.get("format", "pt" if not content.metadata else None)
    if form not in _FRAMEWORKS:
        raise InputError(f"{file}: the format in its metadata is {form!r}; the file is damaged, fetch it again.")
    tensors = host_tensors(content)
    source = Source(path, config, file, tensors, _view(net), _find_own(net))
    source.refuse_tensors(find_bad_values(tensors))
    source.refuse_tensors([] if tensors else ["it holds no tensor"])
    return source


def _view(net: nn.Cell) -> Network:
    """Return a network's cells as they were before attaching."""
    state = state_of(net)
    return Network(net) if state is None else AttachedNetwork(net, state)


def _find_own(net: nn.Cell) -> dict[str, OwnParameter]:
    """Return a network's own parameters by their names in Hugging Face files."""
    state = state_of(net)
    named = {parameter.name: parameter for parameter in net.get_parameters()} if state is None else state.parameters
    marked = {} if state is None else state.marked
    return {
        file_name(name): OwnParameter(name, parameter, marked.get(name))
        for name, parameter in named.items()
        if DELTA_MARK not in name and STATE_MARK not in name
    }


def _read_prompt(source: Source) -> tuple[PeftConfig, dict[str, HostTensor], set[str]]:
    saved = find_saved(source)
    config, tensors, used = prompt.read_prompt(source, tuple(saved))
    own, own_used = read_own_tensors(source, saved, (), prefix=prompt.OWN_PREFIX)
    return config, tensors | own, used | own_used


def _read_layers(source: Source) -> tuple[PeftConfig, dict[str, HostTensor], set[str]]:
    family = FAMILIES[source.config["peft_type"]]
    source, copies = tokens.set_copies_aside(source) if family is tokens.FAMILY else (source, set())
    source.check_keys((*family.fields, *family.idle), family.fixed)
    saved = find_saved(source)
    adapted = find_adapted(source, family.candidates(source.network))
    _check_adapted(source, family, adapted)
    fields = {name: source.config[name] for name in family.fields if name in source.config}
    fields |= family.fields_of(source, adapted)
    if saved:
        fields["modules_to_save"] = tuple(saved)
    config = source.make_config(family.config, target_modules=pin(adapted, family.candidates(source.network)), **fields)
    tensors, used = _read_leaves(source, family, config, adapted)
    used |= copies
    if isinstance(config, VeraConfig):
        used |= vera.check_pair(source, config, adapted)
    own, own_used = read_own_tensors(source, saved, adapted, getattr(config, "bias", "none"))
    return config, tensors | own, used | own_used


def _check_adapted(source: Source, family: Family, adapted: list[str]) -> None:
    """Refuse tensors for other layers than those that the configuration names in this network."""
    held = {path for name in source.tensors if (path := _layer_of(name, family)) is not None}
    problems = [f"there is no tensor for {path}, which target_modules names" for path in adapted if path not in held]
    for path in sorted(held - set(adapted)):
        known = path in family.candidates(source.network)
        problems.append(
            f"there are tensors for {path}, which {'target_modules does not name' if known else 'the network has not'}"
        )
    source.refuse_tensors(problems)
    if not adapted:
        source.refuse("target_modules names no layer of the network", "load into the model that it was trained on")


def _layer_of(name: str, family: Family) -> str | None:
    ending = next((one for one in family.endings if name.endswith(f".{one}")), None)
    if ending is None or not name.startswith(PREFIX):
        return None
    return name.removeprefix(PREFIX).removesuffix(f".{ending}")


def _read_leaves(
    source: Source, family: Family, config: PeftConfig, adapted: list[str]
) -> tuple[dict[str, HostTensor], set[str]]:
    tensors, used, problems = {}, set(), []
    for path in adapted:
        for leaf in family.leaves(config, path, source.network.cells[path]):
            name = f"{PREFIX}{path}.{leaf.theirs}"
            found = source.tensors.get(name)
            if found is None:
                problems.append(f"{name} is missing")
            elif found.shape != leaf.shape:
                problems.append(
                    f"{name} is {list(found.shape)}, and configuration and network ask for {list(leaf.shape)}"
                )
            else:
                used.add(name)
                values = widen(found)
                tensors[f"{path}.{leaf.ours}"] = HostTensor(values.values.reshape(leaf.own_shape), values.dtype)
    source.refuse_tensors(problems)
    return tensors, used


def _explain_left_over(name: str, source: Source) -> str:
    if source.config["peft_type"] != prompt.PEFT_TYPE and not name.startswith("base_model."):
        return f"does not begin with {PREFIX}"
    if ".default." in name or name.endswith(".default"):
        return "has an adapter's name in it, which PEFT leaves out on saving"
    return (
        f"belongs to nothing that a {source.config['peft_type']} adapter with this configuration has, and is no copy of"
        " the network's base"
    )
