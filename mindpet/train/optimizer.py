"""The optimizer of a run: AdamWeightDecay with a linear warm-up and a linear decay."""

from __future__ import annotations

from collections.abc import Callable

from mindspore import Parameter, nn

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
    return nn.AdamWeightDecay(
        [
            {"params": parameters, "lr": rates[head], "weight_decay": weight_decay if decayed else 0.0}
            for (head, decayed), parameters in groups.items()
        ],
        learning_rate=rates[False],
    )
