"""The network's own tensors in a folder of PEFT's: `modules_to_save`, such as a head, and trained biases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindpet.tuning.exchange.peft.frame import PREFIX, Source, widen
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.layers import Network
from mindpet.utils.exceptions import InputError

__all__ = [
    "OwnTensor",
    "check_layout",
    "find_base",
    "holds_transposed",
    "list_own",
    "read_own_tensors",
    "write_own_tensors",
]

_TRANSPOSED, _HEAD = "gpt2", "lm_head"  # the architecture whose dense layers, but for the head, are Conv1D in its files


@dataclass(frozen=True)
class OwnTensor:
    """One of the network's own tensors in a file of PEFT's.

    Attributes:
        theirs: Its name there.
        name: The parameter's name in Hugging Face files.
        is_copy: Whether others tell it too: with bias='all' PEFT writes the bias of a saved cell three times.
        is_base: Whether it holds the values from before training.
    """

    theirs: str
    name: str
    is_copy: bool = False
    is_base: bool = False


def list_own(
    names: Iterable[str], saved: Sequence[str], adapted: Sequence[str], bias: str = "none", prefix: str = PREFIX
) -> list[OwnTensor]:
    """List what PEFT writes for trained parameters of the network itself.

    Args:
        names: The parameters, by their names in Hugging Face files.
        saved: The paths of the cells that are saved whole.
        adapted: The paths of the adapted layers.
        bias: Which biases are trained, as in the configuration.
        prefix: What stands before each path.
    """
    listed = []
    for name in names:
        path, _, leaf = name.rpartition(".")
        listed.append(OwnTensor(f"{prefix}{path}.base_layer.{leaf}" if path in adapted else f"{prefix}{name}", name))
        owner = next((one for one in saved if name.startswith(f"{one}.")), None)
        if owner is not None and bias == "all" and leaf == "bias":
            rest = name.removeprefix(f"{owner}.")
            again = f"default.{rest}" if "." in rest else rest  # within a cell PEFT leaves the adapter's name in
            listed.append(OwnTensor(f"{prefix}{owner}.modules_to_save.{again}", name, is_copy=True))
            listed.append(OwnTensor(f"{prefix}{owner}.original_module.{rest}", name, is_copy=True, is_base=True))
    return listed


def write_own_tensors(
    listed: Iterable[OwnTensor], trained: Mapping[str, HostTensor], base: Mapping[str, HostTensor]
) -> dict[str, HostTensor]:
    """Return what is listed by PEFT's names, from values by the names of Hugging Face files."""
    return {one.theirs: (base if one.is_base else trained)[one.name] for one in listed}


def read_own_tensors(
    source: Source, saved: Sequence[str], adapted: Sequence[str], bias: str = "none", prefix: str = PREFIX
) -> tuple[dict[str, HostTensor], set[str]]:
    """Return the network's own trained tensors by our names, and the names in the file that are used up.

    Raises:
        InputError: One is missing, of another shape, or contradicts another.
    """
    check_layout(source.network, saved)
    names = [name for name in source.own if _is_trained(name, saved, adapted, bias)]
    listed = list_own(names, saved, adapted, bias, prefix)
    tensors: dict[str, HostTensor] = {}
    problems = []
    for one in listed:
        own = source.own[one.name]
        if one.theirs not in source.tensors:
            problems += [] if one.is_copy else [f"{one.theirs} is missing, which modules_to_save or bias asks for"]
            continue
        found = widen(source.tensors[one.theirs], own.dtype)
        if found.shape != own.shape:
            problems.append(f"{one.theirs} is {list(found.shape)}, and the network has {list(own.shape)}")
        elif not one.is_copy:
            tensors[own.name] = found
        elif own.name in tensors:
            wanted = own.base if one.is_base else tensors[own.name]
            if not np.array_equal(found.values, wanted.values):
                problems.append(f"{one.theirs} is not what {'the base' if one.is_base else 'its twin'} has")
    source.refuse_tensors(problems)
    return tensors, {one.theirs for one in listed} & source.tensors.keys()


def find_base(source: Source) -> set[str]:
    """Return the names of tensors that are copies of the base, as PEFT writes those of embeddings if it is told to."""
    copies = set()
    for name, tensor in source.tensors.items():
        own = source.own.get(name.removeprefix(PREFIX).replace(".base_layer.", "."))
        if own is not None and np.array_equal(widen(tensor, own.dtype).values, own.base.values):
            copies.add(name)
    return copies


def holds_transposed(network: Network) -> bool:
    """Tell whether the dense layers of an architecture are Conv1D in its files, which hold weights transposed."""
    return getattr(getattr(network.root, "config", None), "model_type", None) == _TRANSPOSED


def check_layout(network: Network, saved: Sequence[str]) -> None:
    """Refuse a saved cell whose weights the files of its architecture hold the other way round (InputError)."""
    if not holds_transposed(network):
        return
    for path in network.dense_paths:
        if not path.endswith(_HEAD) and any(f"{path}.".startswith(f"{one}.") for one in saved):
            raise InputError(
                f"modules_to_save holds {path}, whose weight PEFT keeps transposed in {_TRANSPOSED}; adapt it with LoRA"
            )


def _is_trained(name: str, saved: Sequence[str], adapted: Sequence[str], bias: str) -> bool:
    path, _, leaf = name.rpartition(".")
    is_bias = leaf.endswith("bias") and (bias == "all" or (bias == "lora_only" and path in adapted))
    return is_bias or any(name.startswith(f"{one}.") for one in saved)
