"""The layers of a network as single operations, so that a training step is compiled sooner and takes less memory.

A layer's own `construct` is run once with stand-ins for its tensors, its cells and the kernels, which write down what is
computed. A layer that does anything else than what a native block can (dropout, a prefix, an adapter, a hook) raises an
exception on the way, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import Primitive

from mindpet import kernels
from mindpet.kernels.switch import kernels_in_use
from mindpet.models.bert import BertLayer

__all__ = ["Blocks"]

# The layers that are looked at, and how many tensors they are given besides the rows.
_LAYERS: dict[type[nn.Cell], int] = {BertLayer: 1}


class Blocks:
    """Those layers of a network that a native block can compute in graph mode, with the kernels 'f32'."""

    def __init__(self, network: nn.Cell) -> None:
        self._found: list[tuple[nn.Cell, Any, list[Parameter]]] = []
        if kernels_in_use() != "f32" or mindspore.get_context("mode") != mindspore.GRAPH_MODE:
            return
        for _, cell in network.cells_and_names():
            if type(cell) in _LAYERS:
                self._look_at(cell, _LAYERS[type(cell)])

    def _look_at(self, layer: nn.Cell, beside: int) -> None:
        from mindpet.kernels.block import Recorder, block_operation  # only where there is a native library

        recorder = Recorder(beside)
        try:
            written = recorder.finished(_Playing(layer, recorder)(recorder.rows, *recorder.beside))
            self._found.append((layer, block_operation(written), recorder.parameters))
        except Exception:  # whatever it is that cannot be written down
            return

    def described(self) -> list[Any]:
        """Return what a compiled graph depends on: the blocks and their numbers in this process."""
        return sorted({(block.number, block.written) for _, block, _ in self._found})

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let what is compiled within take the blocks in the place of the layers."""
        classes = [(layer, type(layer)) for layer, _, _ in self._found]
        try:
            for layer, block, parameters in self._found:
                given = {"block": block.compute, "block_inputs": (*parameters, block.fingerprint)}
                for name, value in given.items():
                    object.__setattr__(layer, name, value)  # nn.Cell's own would take the parameters in
                object.__setattr__(layer, "__class__", _as_block(type(layer)))
            yield
        finally:
            for layer, kind in classes:
                object.__setattr__(layer, "__class__", kind)
                for name in ("block", "block_inputs"):
                    vars(layer).pop(name, None)


class _Block:
    """A layer that its block computes."""

    def construct(self: Any, rows: Tensor, *beside: Tensor) -> Tensor:
        return self.block(rows, *beside, *self.block_inputs)[0]


@lru_cache(maxsize=None)
def _as_block(kind: type[nn.Cell]) -> type[nn.Cell]:
    """Return the child of a layer's class that computes as a block."""
    return type(f"{kind.__name__}AsBlock", (_Block, kind), {"__module__": __name__, "__doc__": kind.__doc__})


class _Playing:
    """A cell whose `construct` can be called with stand-ins for tensors, and which hands stand-ins on."""

    def __init__(self, cell: nn.Cell, recorder: Any) -> None:
        self._cell = cell
        self._recorder = recorder

    def __call__(self, *inputs: Any) -> Any:
        cell = self._cell
        marked = [name for name, value in vars(cell).items() if "hook" in name and value]
        if marked or hasattr(cell, "bprop") or set(cell.get_flags()) - {"training"}:
            raise _OtherwiseError(f"{type(cell).__name__} is more than its construct")
        return self._play(type(cell).construct)(*inputs)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cell, name)
        if isinstance(value, nn.Cell):
            return _Playing(value, self._recorder)
        if isinstance(value, MethodType) and value.__self__ is self._cell:
            return self._play(value.__func__)
        if isinstance(value, FunctionType) and getattr(kernels, value.__name__, None) is value:
            return getattr(self._recorder, value.__name__)
        if isinstance(value, ops.Cast):
            return _unchanged
        if isinstance(value, Primitive):
            raise _OtherwiseError(f"{name} is an operation of MindSpore")
        return value

    def _play(self, function: Any) -> MethodType:
        """Return a method of the cell that calls the recorder in the place of the kernels."""
        names = function.__globals__
        if names.get("kernels") is kernels:
            names = {**names, "kernels": self._recorder}
        played = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
        played.__kwdefaults__ = function.__kwdefaults__
        return MethodType(played, self)


class _OtherwiseError(Exception):
    """A cell computes by something else than the kernels; the message says by what."""


def _unchanged(value: Any, dtype: mindspore.Type) -> Any:
    """Stand for a cast that leaves a value as it is."""
    if value.dtype != dtype:
        raise _OtherwiseError(f"a value is cast to {dtype}")
    return value
