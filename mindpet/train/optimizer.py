"""The optimizer of a run: AdamWeightDecay with a linear warm-up and a linear decay."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

import mindspore
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

__all__ = ["build_optimizer", "linear_schedule"]


def linear_schedule(peak: float, steps: int, warmup_ratio: float) -> list[float]:
    """Return the learning rate of each step: up to `peak` over the first share of the steps, then down to zero.

    Step i of w warm-up steps has `peak * (i + 1) / w`, a later one `peak * (steps - i) / (steps - w)`.
    """
    warmup = round(steps * warmup_ratio)
    rising = [peak * (step + 1) / warmup for step in range(warmup)]
    return rising + [peak * (steps - step) / (steps - warmup) for step in range(warmup, steps)]


def build_optimizer(
    network: nn.Cell,
    *,
    steps: int,
    learning_rate: float,
    head_learning_rate: float,
    warmup_ratio: float,
    weight_decay: float,
    is_head: Callable[[str], bool],
) -> nn.AdamWeightDecay:
    """Make AdamWeightDecay (decoupled decay, no bias correction) over the trainable parameters of `network`.

    Vectors (biases, LayerNorm) are not decayed, as in BERT. The head has a learning rate of its own.

    Args:
        network: Its parameters with `requires_grad` are optimized.
        steps: Length of the schedule.
        learning_rate: Peak of the parameters that are no head's.
        head_learning_rate: Peak of the head's.
        warmup_ratio: Share of the steps over which the learning rates rise.
        weight_decay: Decay of matrices.
        is_head: Tells from a parameter's name whether it is the head's.
    """
    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for parameter in network.trainable_params():
        groups.setdefault((is_head(parameter.name), len(parameter.shape) > 1), []).append(parameter)
    rates = {
        True: linear_schedule(head_learning_rate, steps, warmup_ratio),
        False: linear_schedule(learning_rate, steps, warmup_ratio),
    }
    return _AdamWeightDecay(
        [
            {"params": parameters, "lr": rates[head], "weight_decay": weight_decay if decayed else 0.0}
            for (head, decayed), parameters in groups.items()
        ],
        learning_rate=rates[False],
    )


_update = ops.MultitypeFuncGraph("update")
_TENSORS = ("Tensor",) * 8


@_update.register("Function", "Number", *_TENSORS)
def _update_one(
    adam: Any,
    decay: float,
    beta1: Tensor,
    beta2: Tensor,
    epsilon: Tensor,
    rate: Tensor,
    parameter: Tensor,
    mean: Tensor,
    spread: Tensor,
    gradient: Tensor,
) -> Tensor:
    return adam(parameter, mean, spread, rate, beta1, beta2, epsilon, decay, gradient)


class _Group(nn.Cell):
    """The update of successive parameters of an optimizer that have one learning rate and one decay."""

    def __init__(self, optimizer: nn.AdamWeightDecay, first: int, end: int) -> None:
        super().__init__(auto_prefix=False)
        self.learning_rate = optimizer.learning_rate[first]
        self.decay = float(optimizer.weight_decay[first])
        self.beta1, self.beta2, self.epsilon = optimizer.beta1, optimizer.beta2, optimizer.eps
        self.updated = ParameterTuple(optimizer.parameters[first:end])
        self.means = ParameterTuple(optimizer.moments1[first:end])
        self.spreads = ParameterTuple(optimizer.moments2[first:end])
        self.adam = optimizer.fused_opt
        self.map = ops.HyperMap()

    def construct(self, step: Tensor, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rate = self.learning_rate(step).reshape(())
        update = ops.partial(_update, self.adam, self.decay, self.beta1, self.beta2, self.epsilon, rate)
        return self.map(update, self.updated, self.means, self.spreads, gradients)


class _AdamWeightDecay(nn.AdamWeightDecay):
    """`nn.AdamWeightDecay` over groups, each updated at once.

    The parent looks up the learning rate anew for each parameter, in graphs that take a time to compile that grows with
    the square of their number: 10 s for 200. Its Parameters, their names and the values of each step are the same here.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: list[float]) -> None:
        super().__init__(groups, learning_rate)
        kinds = [(id(rate), decay) for rate, decay in zip(self.learning_rate, self.weight_decay, strict=True)]
        successive = [list(places) for _, places in groupby(range(len(kinds)), key=kinds.__getitem__)]
        self.places = [(places[0], places[-1] + 1) for places in successive]
        self.groups = nn.CellList([_Group(self, first, end) for first, end in self.places], auto_prefix=False)

    @mindspore.jit
    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Update all parameters by their gradients, in the order of `parameters`."""
        updated = ()
        for group, (first, end) in zip(self.groups, self.places):  # noqa: B905, graph mode knows no keywords of zip
            updated += group(self.global_step, gradients[first:end])
        self.assignadd(self.global_step, self.global_step_increase_tensor)
        return updated
