"""Let an optimizer start anew: what it remembers belongs to the values that it has trained."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, nn
from mindspore.experimental import optim

from mindpet.tuning.values import write_values
from mindpet.utils.exceptions import InputError

__all__ = ["check_optimizer", "reset_moments"]

_KNOWN = (
    *(nn.Adam, nn.AdamWeightDecay, nn.AdaMax, nn.AdamOffload, nn.LazyAdam, nn.Momentum, nn.RMSProp, nn.SGD),
    *(optim.Adam, optim.AdamW, optim.SGD),
)
_ZEROS = (
    *("moment", "moment1", "moment2", "moments", "moments1", "moments2", "vhat", "mg", "accum"),
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "state_step"),
)
_ONES = ("beta1_power", "beta2_power", "ms", "stat")


def check_optimizer(optimizer: Any, parameters: dict[str, Parameter]) -> None:
    """Check that an optimizer trains some of these parameters and is one whose moments are known.

    Raises:
        InputError: It is not.
        TypeError: It is no optimizer.
    """
    if not isinstance(optimizer, nn.Optimizer | optim.Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; give an optimizer of MindSpore, or None")
    own = {id(parameter) for parameter in parameters.values()}
    if not any(id(parameter) in own for parameter in optimizer.parameters):
        raise InputError("the optimizer trains no parameter of this network; give the one that was made for it")
    if not isinstance(optimizer, _KNOWN):
        known = ", ".join(f"{one.__module__.split('.')[1]}.{one.__name__}" for one in _KNOWN)
        raise InputError(
            f"it is not known how {type(optimizer).__name__} starts; known are {known}. Make a new optimizer after the"
            " switch"
        )


def reset_moments(optimizer: Any) -> None:
    """Give the moments of a known optimizer the values with which it starts.

    The learning rate and the number of steps that its schedule has taken stay as they are.
    """
    changes = []
    for names, start in ((_ZEROS, 0), (_ONES, 1)):
        for name in names:
            changes += [(one, start) for one in _parameters(getattr(optimizer, name, None))]
    for group in getattr(optimizer, "param_groups", ()):
        changes += [(one, 0) for one in _parameters(group.get("max_exp_avg_sq"))]
    write_values((one, np.full(one.shape, start, one.asnumpy().dtype)) for one, start in changes)


def _parameters(value: Any) -> list[Parameter]:
    if isinstance(value, Parameter):
        return [value]
    return list(value) if isinstance(value, ParameterTuple) else []
