"""What a layer holds that is neither the network's nor the method's: the scale as a value, and whether it is merged."""

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.utils.names import DELTA_MARK, SCALE

__all__ = ["hold_scale", "refuse_merged_training"]


def hold_scale(cell: Any) -> None:
    """Put the number `cell.scaling` into a Parameter without gradient, float32 of shape (), in the same attribute.

    A compiled graph sees a Parameter's value at every call, and a number only when it is compiled. The Parameter is
    named `mindpet_state_scale` beside the method's own parameters. It hangs there under this name first, because a cell
    that is put around the network names its parameters after the first attribute that holds each.
    """
    beside = next(parameter.name for parameter in cell.get_parameters() if DELTA_MARK in parameter.name)
    prefix = beside[: beside.index(DELTA_MARK)]
    value = Tensor(np.array(cell.scaling, np.float32), mstype.float32)
    scale = Parameter(value, name=f"{prefix}{SCALE}", requires_grad=False)
    cell.insert_param_to_cell(SCALE, scale)
    cell.scaling = scale


def refuse_merged_training(cell: nn.Cell) -> None:
    """Refuse to train a layer whose change is in its base weight already (ValueError); works in graph mode too."""
    if cell.merged and cell.training:
        raise ValueError(
            "The adapter is merged into the base weights, and the network is set to training. Call mindpet.unmerge "
            "before training, or set_train(False) before inference."
        )
