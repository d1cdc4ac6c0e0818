"""Make MindSpore see a network that has changed. The only module that knows how MindSpore keeps what it compiled.

A graph is compiled once. A cell, a Python attribute or a flag that changes afterwards is ignored, in the cell itself
and in everything around it: a training step, a Model, a function under `ms.jit` that finds the network in its closure,
among its globals or behind some object. Who holds such a graph cannot be found out with certainty, and a graph that
goes on giving the old result is worse than one that is compiled again: so a change forgets every graph of the process.
`mindspore.ms_memory_recycle` does that (public, in MindSpore 2.7 to 2.10; 20 ms for ten graphs; tensors stay).

What this does not reach is refused before anything is changed: functions that `ms.jit(capture_mode='bytecode')` has
made keep graphs of their own, and an optimizer keeps the parameters that could train when it was made.
"""

from __future__ import annotations

import gc
import types

import mindspore
from mindspore import nn
from mindspore.experimental import optim

from mindpet.utils.exceptions import CompiledNetworkError

__all__ = ["forget_compiled", "refuse_stale"]

_OPTIMIZERS = (nn.Optimizer, optim.Optimizer)


def refuse_stale(network: nn.Cell) -> None:
    """Refuse to change a network while something is alive that would go on with what was there before.

    Raises:
        CompiledNetworkError: An optimizer holds parameters of the network, or a function captured as bytecode lives.
    """
    own = {id(parameter) for parameter in network.get_parameters()}
    if _find_obstacle(own):
        gc.collect()  # what is dead but not yet freed is no obstacle
        obstacle = _find_obstacle(own)
        if obstacle:
            raise CompiledNetworkError(obstacle)


def forget_compiled() -> None:
    """Let everything that is compiled be compiled anew at its next call."""
    mindspore.ms_memory_recycle()


def _find_obstacle(own: set[int]) -> str:
    """Return what is in the way, or '': an optimizer of parameters with these ids, or a function kept as bytecode."""
    for item in gc.get_objects():
        kind = type(item)  # isinstance would wake up lazy proxies
        if issubclass(kind, _OPTIMIZERS) and any(id(parameter) in own for parameter in item.parameters):
            return (
                f"a living optimizer ({kind.__name__}) holds parameters of the network and would go on training these;"
                " delete it and what holds it (a Model, a TrainOneStepCell), call this again and make the optimizer"
                " afterwards"
            )
        if kind is types.FunctionType and _captures_bytecode(item):
            return (
                f"the function {item.__qualname__} was made by ms.jit(capture_mode='bytecode'), which keeps its graphs"
                " when the network changes; delete it, call this again and define it afterwards"
            )
    return ""


def _captures_bytecode(function: types.FunctionType) -> bool:
    return "__wrapped_by_jit__" in vars(function) and "pijit" in function.__code__.co_filename
