"""One graph for all equal layers of a network, so that a training step is compiled sooner.

MindSpore infers the types of each cell instance and derives its gradient, twelve times for twelve equal layers.
`mindspore.lazy_inline` does this once for cells that it is told are equal, and then puts the result in the place of
each. A graph takes a cell's attributes as constants, so what is told wrongly is computed wrongly: layers are equal here
only where everything that hangs on them is, but for the values and names of their Parameters.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, lazy_inline, nn
from mindspore.ops import Primitive

from mindpet.utils.dropout import Dropout

__all__ = ["describe", "share_equal_layers"]

_SMALL = (bool, int, float, complex, str, bytes, type(None), mindspore.Type, inspect.Signature, np.generic)


@contextmanager
def share_equal_layers(network: nn.Cell) -> Iterator[None]:
    """Let what is compiled within take equal members of each `nn.CellList` of a network for one graph.

    It computes what it computes otherwise, bit for bit. Layers are shared in graph mode on a stand-alone CPU only.
    Python's garbage collector rests meanwhile: it would search all that is being made, again and again, in vain.

    Args:
        network: One whose layers choose no branch by the values of tensors. Afterwards it is as before, so that no
            later graph relies on layers that may have become different.
    """
    # By identity, as a cell that stands in several places is met in each.
    marked = {id(layer): (layer, description) for layer, description in _equal_layers(network)} if _is_served() else {}
    collects = gc.isenabled()
    gc.disable()
    try:
        for layer, description in marked.values():
            _Marked.__init__(layer, description)
        yield
    finally:
        for layer, _ in marked.values():
            layer.cell_init_args = ""
            del layer.no_inline
        if collects:
            gc.enable()


def describe(cell: nn.Cell) -> str:
    """Return a digest that is the same for two cells only if graphs of them differ in their Parameters alone.

    Equal are class, attributes, primitives, constants and children, and of the Parameters shape, dtype, whether they
    train, and which of them are the same one. What is not known to be compared by value is equal to itself only.
    """
    return hashlib.sha256(repr(_Description().of(cell)).encode()).hexdigest()


def _is_served() -> bool:
    alone = mindspore.get_auto_parallel_context("parallel_mode") == "stand_alone"
    on_cpu = mindspore.get_context("device_target") == "CPU"
    return alone and on_cpu and mindspore.get_context("mode") == mindspore.GRAPH_MODE


def _equal_layers(cell: nn.Cell) -> Iterator[tuple[Any, str]]:
    """Yield each member of a `nn.CellList` that equals another one, with what describes both; nothing within them."""
    for child in cell.cells():
        described = {id(layer): describe(layer) for layer in child} if isinstance(child, nn.CellList) else {}
        times = Counter(described.values())
        for layer in child if described else (child,):
            if times[described.get(id(layer), "")] > 1 and not getattr(layer, "cell_init_args", ""):
                yield layer, described[id(layer)]
            else:
                yield from _equal_layers(layer)


class _Marked:
    """Its constructor marks a finished layer: MindSpore takes cells whose constructors got the same for equal."""

    @lazy_inline(policy="front")
    def __init__(self, description: str) -> None:
        """Mark what stands in the place of `self`; the decorator does it."""


class _Description:
    """The description of one cell; Parameters and cells within are numbered as they are met."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """Return what is the same for values that are the same constant of a graph."""
        if isinstance(value, _SMALL):
            return type(value).__name__, repr(value)
        if isinstance(value, Parameter):
            return self._number(value), tuple(value.shape), str(value.dtype), value.requires_grad
        if isinstance(value, Tensor):
            wide = value.astype(mindspore.float32) if value.dtype == mindspore.bfloat16 else value
            return str(value.dtype), self.of(wide.asnumpy())
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [self.of(item) for item in value]
        if isinstance(value, Mapping):
            return type(value).__name__, [(self.of(key), self.of(item)) for key, item in value.items()]
        if isinstance(value, (nn.Cell, Primitive)):
            return self._of_object(value)
        return type(value).__name__, id(value)

    def _of_object(self, value: Any) -> Any:
        known = id(value) in self._numbers
        number = self._number(value)
        if known:
            return number
        kind = type(value).__name__, id(type(value))
        if type(value) in (Dropout, nn.Dropout) and value.p == 0:
            return number, kind  # it computes nothing, so its seed does not matter
        if isinstance(value, nn.Cell):
            return number, kind, self._of_attributes(value)
        return number, kind, self.of(value.attrs), self.of(vars(value))

    def _of_attributes(self, cell: nn.Cell) -> list[tuple[str, Any]]:
        attributes = [(name, self.of(value)) for name, value in vars(cell).items() if not _tells_instances(name, value)]
        return sorted(attributes, key=lambda attribute: attribute[0])

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(id(value), len(self._numbers))


def _tells_instances(name: str, value: Any) -> bool:
    """Tell whether an attribute says nothing of what a cell computes.

    That is what every nn.Cell has: numbers, times, prefixes, scopes and phases of the instance, and empty places.
    """
    return name in _names_of_cells() and (type(value) in (int, str, set) or value is None or value == {})


@lru_cache(maxsize=1)
def _names_of_cells() -> set[str]:
    return set(vars(nn.Cell()))
