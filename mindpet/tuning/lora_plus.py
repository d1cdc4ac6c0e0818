"""LoRA+: a higher learning rate for `lora_b` than for `lora_a` (arXiv:2402.12354), for MindSpore's own optimizers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mindspore import Parameter, nn

from mindpet.delta.lora_embedding import LoRAEmbedding
from mindpet.utils.exceptions import InputError

__all__ = ["lora_plus_groups"]


def lora_plus_groups(
    network: nn.Cell,
    learning_rate: float | Sequence[float],
    ratio: float,
    weight_decay: float = 0.0,
    embedding_learning_rate: float | Sequence[float] = 1e-6,
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a network by learning rate and decay, as PEFT's LoRA+ optimizer does.

    | Parameters | Learning rate | Decayed |
    |---|---|---|
    | LoRA on embeddings | `embedding_learning_rate` | yes |
    | `lora_b`, and vectors | `learning_rate` * `ratio` | but for biases and LayerNorm |
    | all others: `lora_a`, the matrices of a head | `learning_rate` | yes |

    The groups go to an optimizer in the place of the parameters:

        optimizer = nn.AdamWeightDecay(lora_plus_groups(net, 1e-4, ratio=16), learning_rate=1e-4)

    Args:
        network: A network with LoRA attached, or any other.
        learning_rate: The rate of `lora_a`: a number, or one for each step (which the optimizers of
            mindspore.experimental.optim do not take).
        ratio: The rate of `lora_b` divided by that of `lora_a`, positive. The paper finds some 16 good.
        weight_decay: The decay of the parameters that are decayed.
        embedding_learning_rate: The rate for LoRA on embeddings, likewise.

    Returns:
        Mappings with the keys `params`, `lr` and `weight_decay`, without empty groups.

    Raises:
        InputError: `ratio` is not positive or not finite, or nothing of the network can train.
    """
    if not (ratio > 0 and math.isfinite(ratio)):
        raise InputError(f"ratio is {ratio!r}; give a positive number such as 16")
    embedded = _parameters_in(network, LoRAEmbedding)
    normal = _parameters_in(network, nn.LayerNorm)
    fast = _times(learning_rate, ratio)
    groups: list[dict[str, Any]] = [
        {"params": [], "lr": learning_rate, "weight_decay": weight_decay},
        {"params": [], "lr": embedding_learning_rate, "weight_decay": weight_decay},
        {"params": [], "lr": fast, "weight_decay": weight_decay},
        {"params": [], "lr": fast, "weight_decay": 0.0},
    ]

    def place(parameter: Parameter) -> int:
        if id(parameter) in embedded:
            return 1
        if "lora_b" not in parameter.name.lower() and len(parameter.shape) != 1:
            return 0
        return 3 if id(parameter) in normal or "bias" in parameter.name else 2

    for parameter in network.trainable_params():
        groups[place(parameter)]["params"].append(parameter)
    filled = [group for group in groups if group["params"]]
    if not filled:
        raise InputError("the network has no parameter that can train; attach LoRA first, with get_peft_model")
    return filled


def _parameters_in(network: nn.Cell, kind: type[nn.Cell]) -> set[int]:
    """Return the ids of the parameters that cells of a kind hold themselves."""
    cells = (cell for _, cell in network.cells_and_names() if isinstance(cell, kind))
    return {id(parameter) for cell in cells for parameter in cell.get_parameters(expand=False)}


def _times(rate: float | Sequence[float], factor: float) -> float | list[float]:
    return [step * factor for step in rate] if isinstance(rate, Sequence) else rate * factor
