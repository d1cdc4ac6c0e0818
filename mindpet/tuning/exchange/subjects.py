"""What an adapter's probe runs: each adapted cell, with an input that fits it, and the whole network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mindspore import Parameter, nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.exchange.record import Input
from mindpet.tuning.exchange.values import FLOATS
from mindpet.tuning.state import PeftState, adapter_parameters
from mindpet.utils.names import STATE_MARK

__all__ = ["Subject", "base_parameters", "coarsest", "find_subjects", "whole_network"]

_LENGTH = 8  # of sequences
_ROWS = 2


@dataclass(frozen=True)
class Subject:
    """A cell to run.

    Attributes:
        path: Where it hangs; empty for the whole network.
        cell: The cell.
        plain: The layer that it stands for, with the same Parameters; None where there is none.
        inputs: Its inputs, in order.
        input_dtype: The dtype of those that are floating numbers.
        dtype: The coarsest dtype that it computes in.
    """

    path: str
    cell: nn.Cell
    plain: nn.Cell | None
    inputs: dict[str, Input]
    input_dtype: str
    dtype: str


def find_subjects(network: nn.Cell, state: PeftState) -> list[Subject]:
    """Return the adapted cells: replaced layers, prefixes, and layers with marked parameters that can be run alone."""
    found = [_subject(one.path, one.cell, one.original, _inputs_of(one.cell)) for one in state.own_replacements]
    found += [_subject(one.path, one.cell, None, _inputs_of_prefix(one.attention)) for one in state.own_feeds]
    taken = {id(subject.cell) for subject in found}
    found += [
        _subject(path, cell, None, _inputs_of(cell))
        for path, cell in _owners(network, state)
        if id(cell) not in taken and isinstance(cell, nn.Dense | nn.Embedding | nn.Conv2d | nn.LayerNorm)
    ]
    return [subject for subject in found if subject.inputs]


def whole_network(network: nn.Cell, state: PeftState) -> Subject | None:
    """Return the network itself if it can be run: it takes `input_ids`, and is known to have so many tokens."""
    config = getattr(network, "config", None)
    vocabulary = getattr(config, "vocab_size", None)
    if vocabulary is None and state.feeds:
        tables = [cell.vocab_size for _, cell in network.cells_and_names() if isinstance(cell, nn.Embedding)]
        vocabulary = min(tables, default=None)
    positions = getattr(config, "max_position_embeddings", 2 * _LENGTH)
    shape = (_ROWS, min(_LENGTH, positions // 2))  # what stands before a text takes some of a small network's positions
    known = {
        "input_ids": Input(kind="indices", shape=shape, below=vocabulary or 0),
        "attention_mask": Input(kind="padded", shape=shape),
        "token_type_ids": Input(kind="zeros", shape=shape),
    }
    arguments = inspect.signature(network.construct).parameters.values()
    needed = [one.name for one in arguments if one.name in known or one.default is inspect.Parameter.empty]
    if not vocabulary or "input_ids" not in needed or not known.keys() >= set(needed):
        return None
    dtypes = [_compute_dtype(cell) for _, cell in network.cells_and_names()]
    return Subject("", network, None, {name: known[name] for name in needed}, "float32", coarsest(dtypes))


def base_parameters(network: nn.Cell, state: PeftState) -> dict[str, Parameter]:
    """Return what the adapter touches of the base, by canonical name: parameters of adapted cells, but for its own."""
    cells = [one.cell for one in state.own_replacements] + [one.attention for one in state.own_feeds]
    cells += [cell for _, cell in _owners(network, state)]
    touched = {id(parameter) for cell in cells for parameter in cell.get_parameters()}
    own = {id(parameter) for parameter in adapter_parameters(network).values()}
    return {
        canonical_name(name): parameter
        for name, parameter in state.parameters.items()
        if id(parameter) in touched - own and STATE_MARK not in name
    }


def coarsest(dtypes: Iterable[str]) -> str:
    """Return the floating dtype with the fewest digits; float32 where there is none."""
    return max((dtype for dtype in dtypes if dtype in FLOATS), key=FLOATS.index, default=FLOATS[0])


def _subject(path: str, cell: nn.Cell, plain: nn.Cell | None, inputs: dict[str, Input]) -> Subject:
    weights = [_name(parameter.dtype) for parameter in (plain or cell).get_parameters()]
    return Subject(path, cell, plain, inputs, coarsest(weights[:1]), coarsest([_compute_dtype(cell), *weights]))


def _owners(network: nn.Cell, state: PeftState) -> list[tuple[str, nn.Cell]]:
    """Return the cells that hold marked parameters themselves, with their paths."""
    marked = {id(state.parameters[name]) for name in state.marked}
    return [
        (path, cell)
        for path, cell in network.cells_and_names()
        if any(id(parameter) in marked for parameter in cell.get_parameters(expand=False))
    ]


def _inputs_of(cell: Any) -> dict[str, Input]:
    """Return a small input that fits a layer; none for a layer of another kind."""
    if isinstance(cell, nn.Embedding):
        return {"indices": Input(kind="indices", shape=(_ROWS, _LENGTH), below=cell.vocab_size)}
    if isinstance(cell, nn.LayerNorm):
        return {"x": Input(kind="numbers", shape=(_ROWS, *cell.normalized_shape))}
    if isinstance(cell, nn.Conv2d):
        geometry = zip(cell.kernel_size, cell.stride, _pair(cell.dilation), strict=True)
        image = (dilation * (kernel - 1) + 1 + stride for kernel, stride, dilation in geometry)
        return {"x": Input(kind="numbers", shape=(_ROWS, cell.in_channels, *image))}
    if isinstance(cell, nn.Dense):
        return {"x": Input(kind="numbers", shape=(_ROWS, cell.in_channels))}
    return {}


def _inputs_of_prefix(attention: Any) -> dict[str, Input]:
    """Return keys, values and mask as an attention with these heads hands them to its prefix."""
    states = Input(kind="numbers", shape=(_ROWS, _LENGTH, attention.num_heads * attention.head_dim))
    return {"key": states, "value": states, "mask": Input(kind="open", shape=(_ROWS, 1, 1, _LENGTH))}


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else size[-2:]


def _compute_dtype(cell: nn.Cell) -> str:
    return _name(getattr(cell, "compute_dtype", ""))


def _name(dtype: Any) -> str:
    return str(dtype).lower()
