"""Make MindSpore see a network that has changed. The only module that knows how MindSpore keeps what it compiled.

A graph is compiled once. A cell, a Python attribute or a flag that changes afterwards is ignored, in the cell itself
and in everything around it: a training step, a Model, a function under `ms.jit` that finds the network in its closure,
among its globals or behind some object. From MindSpore 2.8 on such a function takes even the values of the parameters
that it finds as constants, so that a change of values is ignored there too. Who holds such a graph cannot be found out
with certainty, and a graph that goes on giving the old result is worse than one that is compiled again: so a change
forgets every graph of the process.
`mindspore.ms_memory_recycle` does that (public, in MindSpore 2.7 to 2.10; 20 ms for ten graphs; tensors stay).

What this does not reach is refused before anything is changed: functions that `ms.jit(capture_mode='bytecode')` has
made keep graphs of their own, and an optimizer keeps the parameters that could train when it was made.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

import mindspore
from mindspore import nn
from mindspore.experimental import optim

from mindpet.utils.exceptions import CompiledNetworkError

__all__ = ["forget_compiled", "refuse_captured", "refuse_stale"]

_OPTIMIZERS = (nn.Optimizer, optim.Optimizer)
_SEARCHED = 10_000  # objects that may hold another one; what has more holders counts as reachable


def refuse_stale(network: nn.Cell) -> None:
    """Refuse to change a network while something is alive that would go on with what was there before.

    Raises:
        CompiledNetworkError: An optimizer holds parameters of the network, or a function captured as bytecode lives.
    """
    _refuse_obstacles({id(parameter) for parameter in network.get_parameters()})


def refuse_captured() -> None:
    """Refuse to write values while a function lives that would go on with the old ones; optimizers do not.

    Raises:
        CompiledNetworkError: A function captured as bytecode lives.
    """
    _refuse_obstacles(set())


def forget_compiled() -> None:
    """Let everything that is compiled be compiled anew at its next call."""
    mindspore.ms_memory_recycle()


def _refuse_obstacles(own: set[int]) -> None:
    if next(_find_obstacles(own), None) is None:
        return
    gc.collect()  # what is dead but not yet freed is no obstacle
    for item, reason in _find_obstacles(own):
        if _can_be_reached(item):
            raise CompiledNetworkError(reason)


def _find_obstacles(own: set[int]) -> Iterator[tuple[Any, str]]:
    """Yield each optimizer of parameters with these ids, and each function kept as bytecode, with what to say."""
    for item in gc.get_objects():
        kind = type(item)  # isinstance would wake up lazy proxies
        if own and issubclass(kind, _OPTIMIZERS) and any(id(parameter) in own for parameter in _held_by(item)):
            yield (
                item,
                f"a living optimizer ({kind.__name__}) holds parameters of the network and would go on training these;"
                " delete it and what holds it (a Model, a TrainOneStepCell), call this again and make the optimizer"
                " afterwards",
            )
        if kind is types.FunctionType and _captures_bytecode(item):
            yield (
                item,
                f"the function {item.__qualname__} was made by ms.jit(capture_mode='bytecode'), which keeps its graphs"
                " when the network changes; delete it, call this again and define it afterwards",
            )


def _held_by(optimizer: Any) -> Iterable[Any]:
    """Return the parameters of an optimizer; one whose constructor has failed has none."""
    return getattr(optimizer, "parameters", ())


def _can_be_reached(item: object) -> bool:
    """Tell whether Python code can still use an object.

    MindSpore itself never frees a training step that it has compiled; nobody can call that one any more.
    """
    ends = {id(getattr(module, "__dict__", None)) for module in list(sys.modules.values())}
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_filename != __file__:
                ends |= {id(frame), *map(id, frame.f_locals.values())}
            frame = frame.f_back  # type: ignore[assignment]
    seen: dict[int, object] = {}
    level = [item]
    while level and len(seen) < _SEARCHED:
        if any(id(one) in ends for one in level):
            return True
        seen |= {id(one): one for one in level}
        holders = gc.get_referrers(*level)
        level = [one for one in holders if id(one) not in seen and one is not level and one is not seen]
        del holders
    return bool(level)


def _captures_bytecode(function: types.FunctionType) -> bool:
    return "pijit" in function.__code__.co_filename and "__wrapped_by_jit__" in vars(function)
