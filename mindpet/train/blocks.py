"""The layers of a network as single operations, so that a training step is compiled sooner and takes less memory.

A layer's own `construct` is run once with stand-ins for its tensors, its cells and the kernels, which write down what
is computed. Only functions of MindPet are run so: what another one would do to a stand-in is not known. A layer that
does anything else than what a native block can (dropout, a prefix, a bottleneck, a hook) raises an exception on the
way, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FunctionType, MethodType
from typing import Any

import mindspore
from mindspore import Parameter, Tensor, nn, ops

from mindpet import kernels
from mindpet.kernels.switch import kernels_in_use, missing
from mindpet.models.bert import BertLayer
from mindpet.models.decoder import DecoderLayer

if missing() is None:
    from mindpet.kernels.block import BlockOperation, Recorder, block_operation

__all__ = ["Blocks"]

# What a layer has while it is compiled as a block.
_ATTRIBUTES = ("mindpet_block", "mindpet_block_fingerprint", "mindpet_block_parameters")
_LEFT_BY_A_CALL = "__compile_cell_hook__"  # in a cell that was called by itself in graph mode
_stop = ops.stop_gradient


def _the_kernels() -> dict[str, Any]:
    return {name: getattr(kernels, name) for name in kernels.__all__}


_KERNELS = _the_kernels()  # who puts another function in the place of one expects it to be called


class Blocks:
    """Those layers of a network that a native block can compute in graph mode, with the kernels 'f32'.

    Args:
        network: It is left as it is.
        optimized: All Parameters of which a gradient may be asked for.
    """

    def __init__(self, network: nn.Cell, optimized: Iterable[Parameter]) -> None:
        self._found: list[tuple[nn.Cell, BlockOperation, list[Parameter]]] = []
        self._optimized = {id(parameter) for parameter in optimized}
        in_graph_mode = mindspore.get_context("mode") == mindspore.GRAPH_MODE
        if kernels_in_use() == "f32" and in_graph_mode and _the_kernels() == _KERNELS:
            for _, cell in network.cells_and_names():
                if type(cell) in _AS_BLOCKS:
                    self._look_at(cell)

    def _look_at(self, layer: nn.Cell) -> None:
        kind: Any = type(layer)
        recorder = Recorder(_AS_BLOCKS[kind].beside)
        others = [None] * _AS_BLOCKS[kind].others
        try:
            result = _Playing(layer, recorder)(recorder.rows, *recorder.beside, *others)
            block = block_operation(recorder.finished(result[0] if others else result))
        except Exception:  # whatever it is that cannot be written down
            return
        # A block gives no gradient of what it takes for frozen, and what stands there must never be taken for one.
        if not any(id(parameter) in self._optimized for parameter in recorder.frozen()):
            self._found.append((layer, block, recorder.parameters))

    def __len__(self) -> int:
        """Return how many layers were found."""
        return len(self._found)

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
    """A layer of an encoder that its block computes, where its rows are float32."""

    beside, others = 1, 0  # how many tensors its `construct` takes besides the rows, and of what else it is given None

    def construct(self: Any, rows: Tensor, mask: Tensor) -> Tensor:
        if rows.dtype != mindspore.float32:
            return self.plain(rows, mask)
        parameters = self.mindpet_block_parameters
        return self.mindpet_block(self.mindpet_block_fingerprint, rows, _stop(mask), *parameters)[0]


class _DecoderBlock:
    """A layer of a decoder; of keys and values, which a step of training does not ask for, it gives none."""

    beside, others = 3, 1

    def construct(self: Any, rows: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, past: Any) -> Any:
        if rows.dtype != mindspore.float32 or past is not None:
            return self.plain(rows, mask, cosine, sine, past)
        beside = _stop(mask), _stop(cosine), _stop(sine)
        parameters = self.mindpet_block_parameters
        return self.mindpet_block(self.mindpet_block_fingerprint, rows, *beside, *parameters)[0], None


_AS_BLOCKS: dict[type[nn.Cell], Any] = {BertLayer: _EncoderBlock, DecoderLayer: _DecoderBlock}


@cache
def _as_block(kind: type[nn.Cell]) -> type[nn.Cell]:
    """Return the child of a layer's class that computes as a block."""
    names = {"plain": kind.construct, "__module__": __name__, "__doc__": kind.__doc__}
    return type(f"{kind.__name__}AsBlock", (_AS_BLOCKS[kind], kind), names)


class _Playing:
    """A cell whose `construct` can be called with stand-ins for tensors, and which hands stand-ins on."""

    def __init__(self, cell: nn.Cell, recorder: Any) -> None:
        self._cell = cell
        self._recorder = recorder

    def __call__(self, *inputs: Any) -> Any:
        cell = self._cell
        own = [name for name, value in vars(cell).items() if name == "construct" or ("hook" in name and value)]
        if set(own) - {_LEFT_BY_A_CALL} or hasattr(cell, "bprop") or set(cell.get_flags()) - {"training"}:
            raise _OtherwiseError(f"{type(cell).__name__} is more than its construct")
        return self._play(type(cell).construct)(*inputs)

    def __getattr__(self, name: str) -> Any:
        value: Any = getattr(self._cell, name)
        if isinstance(value, nn.Cell):
            return _Playing(value, self._recorder)
        if isinstance(value, MethodType) and value.__self__ is self._cell:
            return self._play(value.__func__)
        if isinstance(value, FunctionType) and value in _KERNELS.values():
            return getattr(self._recorder, value.__name__)
        if isinstance(value, ops.Cast):
            return _unchanged
        if callable(value):
            raise _OtherwiseError(f"{name} is none of the kernels")
        return value

    def _play(self, function: Any) -> MethodType:
        """Return a method of the cell that calls the recorder in the place of the kernels, and no other operation."""
        if not function.__module__.startswith("mindpet."):
            raise _OtherwiseError(f"{function.__qualname__} is not MindPet's")
        stand_ins = {"kernels": self._recorder, "ops": _NoOperations()}
        names = {name: stand_ins.get(name, value) for name, value in function.__globals__.items()}
        played = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
        played.__kwdefaults__ = function.__kwdefaults__
        return MethodType(played, self)


class _NoOperations:
    """Stands for `mindspore.ops`."""

    def __getattr__(self, name: str) -> Any:
        raise _OtherwiseError(f"{name} is an operation of MindSpore")


class _OtherwiseError(Exception):
    """A cell computes by something else than the kernels; the message says by what."""


def _unchanged(value: Any, dtype: mindspore.Type) -> Any:
    """Stand for a cast that leaves a value as it is."""
    if value.dtype != dtype:
        raise _OtherwiseError(f"a value is cast to {dtype}")
    return value
