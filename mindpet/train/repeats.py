"""One graph for all equal layers of a network, so that a training step is compiled sooner.

MindSpore infers the types of each cell instance and derives its gradient, twelve times for twelve equal layers.
`mindspore.lazy_inline` does this once for cells that it is told are equal, and then puts the result in the place of
each. What is told wrongly is computed wrongly: `description` says when two layers are equal.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mindspore
from mindspore import lazy_inline, nn

from mindpet.kernels.switch import on_stand_alone_cpu
from mindpet.train.description import describe

__all__ = ["share_equal_layers"]


@contextmanager
def share_equal_layers(network: nn.Cell) -> Iterator[None]:
    """Let what is compiled within take equal members of each `nn.CellList` of a network for one graph.

    It computes what it computes otherwise, bit for bit. Layers are shared in graph mode on a stand-alone CPU only.
    Python's garbage collector rests meanwhile: it would search all that is being made, again and again, in vain; and
    when MindSpore calls it, as it does once for each graph, it leaves out all that was there before.

    Args:
        network: One whose layers choose no branch by the values of tensors. Afterwards it is as before, so that no
            later graph relies on layers that may have become different.
    """
    # By identity, as a cell that stands in several places is met in each.
    marked = {id(layer): (layer, description) for layer, description in _equal_layers(network)} if _is_served() else {}
    collects, hides = gc.isenabled(), gc.get_freeze_count() == 0
    gc.disable()
    if hides:
        gc.freeze()
    try:
        for layer, description in marked.values():
            _Marked.__init__(layer, description)
        yield
    finally:
        for layer, _ in marked.values():
            layer.cell_init_args = ""
            del layer.no_inline
        if hides:
            gc.unfreeze()
        if collects:
            gc.enable()


def _is_served() -> bool:
    return on_stand_alone_cpu() and mindspore.get_context("mode") == mindspore.GRAPH_MODE


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
