"""The small layers with their formulas, and the helpers that the tests of the delta room share."""

import numpy as np
from mindspore import dtype as mstype
from mindspore import ops

from mindpet.delta._cases import (
    ADAPTER,
    ADAPTER_DENSE,
    DENSE_LAYERS,
    DORA,
    INPUTS,
    LAYERS,
    LORA,
    LOW_RANK,
    LOW_RANK_DENSE,
    OUTPUTS,
    PISSA,
    VERA,
    Probed,
    Side,
    random_input,
    randomise,
    values_of,
)

__all__ = [
    "ADAPTER",
    "ADAPTER_DENSE",
    "DENSE_LAYERS",
    "DORA",
    "INPUTS",
    "LAYERS",
    "LORA",
    "LOW_RANK",
    "LOW_RANK_DENSE",
    "NUMPY",
    "OUTPUTS",
    "PISSA",
    "VERA",
    "Probed",
    "Side",
    "primitives_of",
    "random_input",
    "randomise",
    "strategies_of",
    "values_of",
]

NUMPY = {mstype.float32: np.float32, mstype.float16: np.float16}


def primitives_of(cell):
    """Return each primitive below `cell` by its path."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in cell.cells_and_names()
        for name, value in vars(part).items()
        if isinstance(value, ops.Primitive)
    }


def strategies_of(cell):
    """Return the stored strategy of each primitive below `cell` that has one."""
    stored = {path: primitive.attrs.get("in_strategy") for path, primitive in primitives_of(cell).items()}
    return {path: strategy for path, strategy in stored.items() if strategy is not None}
