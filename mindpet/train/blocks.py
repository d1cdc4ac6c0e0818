"""The layers of a network as single operations, so that a training step is compiled sooner and takes less memory.

A layer's own `construct` is run once with stand-ins for its tensors, its cells and the kernels, which write down what
is computed. A layer that does anything else than what a native block can (dropout, a prefix, an adapter, a hook) raises
an exception on the way, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import Primitive

from mindpet import kernels
from mindpet.kernels.switch import kernels_in_use, missing
from mindpet.models.bert import BertLayer
from mindpet.models.decoder import DecoderLayer

if missing() is None:
    from mindpet.kernels.block import BlockOperation, Recorder, block_operation

__all__ = ["Blocks"]

_ATTRIBUTES = ("block", "block_fingerprint", "block_parameters")  # of a layer that is compiled as a block
_stop = ops.stop_gradient


class Blocks:
    """Those layers of a network that a native block can compute in graph mode, with the kernels 'f32'."""

    def __init__(self, network: nn.Cell) -> None:
        self._found: list[tuple[nn.Cell, BlockOperation, list[Parameter]]] = []
        if kernels_in_use() == "f32" and mindspore.get_context("mode") == mindspore.GRAPH_MODE:
            for _, cell in network.cells_and_names():
                if type(cell) in _AS_BLOCKS:
                    self._look_at(cell)

    def _look_at(self, layer: nn.Cell) -> None:
        kind: Any = type(layer)
        recorder = Recorder(_AS_BLOCKS[kind].beside)
        others = [None] * _AS_BLOCKS[kind].others
        try:
            result = _Playing(layer, recorder)(recorder.rows, *recorder.beside, *others)
            written = recorder.finished(result[0] if others else result)
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
                given = (block.compute, block.fingerprint, tuple(parameters))
                for name, value in zip(_ATTRIBUTES, given, strict=True):
                    object.__setattr__(layer, name, value)  # nn.Cell's own would take the parameters in
                kind: Any = type(layer)
                object.__setattr__(layer, "__class__", _as_block(kind))
            yield
        finally:
            for layer, kind in classes:
                object.__setattr__(layer, "__class__", kind)
                for name in _ATTRIBUTES:
                    vars(layer).pop(name, None)


class _EncoderBlock:
    """A layer of an encoder that its block computes."""

    beside, others = 1, 0  # how many tensors its `construct` takes besides the rows, and of what else it is given None

    def construct(self: Any, rows: Tensor, mask: Tensor) -> Tensor:
        return self.block(self.block_fingerprint, rows, _stop(mask), *self.block_parameters)[0]


class _DecoderBlock:
    """A layer of a decoder; of keys and values, which a step of training does not ask for, it gives none."""

    beside, others = 3, 1

    def construct(self: Any, rows: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, past: None) -> Any:
        beside = _stop(mask), _stop(cosine), _stop(sine)
        return self.block(self.block_fingerprint, rows, *beside, *self.block_parameters)[0], None


_AS_BLOCKS: dict[type[nn.Cell], Any] = {BertLayer: _EncoderBlock, DecoderLayer: _DecoderBlock}


@cache
def _as_block(kind: type[nn.Cell]) -> type[nn.Cell]:
    """Return the child of a layer's class that computes as a block."""
    names = {"__module__": __name__, "__doc__": kind.__doc__}
    return type(f"{kind.__name__}AsBlock", (_AS_BLOCKS[kind], kind), names)


class _Playing:
    """A cell whose `construct` can be called with stand-ins for tensors, and which hands stand-ins on."""

    def __init__(self, cell: nn.Cell, recorder: Any) -> None:
        self._cell = cell
        self._recorder = recorder

    def __call__(self, *inputs: Any) -> Any:
        cell = self._cell
        own = [name for name, value in vars(cell).items() if name == "construct" or ("hook" in name and value)]
        if own or hasattr(cell, "bprop") or set(cell.get_flags()) - {"training"}:
            raise _OtherwiseError(f"{type(cell).__name__} is more than its construct")
        return self._play(type(cell).construct)(*inputs)

    def __getattr__(self, name: str) -> Any:
        value: Any = getattr(self._cell, name)
        if isinstance(value, nn.Cell):
            return _Playing(value, self._recorder)
        if isinstance(value, MethodType) and value.__self__ is self._cell:
            return self._play(value.__func__)
        if isinstance(value, FunctionType) and value in vars(kernels).values():
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
