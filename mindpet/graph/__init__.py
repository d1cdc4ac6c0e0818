"""Freezing, and checkpoints of the trainable parameters."""

from mindpet.graph.ckpt_util import TrainableParamsCheckPoint
from mindpet.graph.freeze_utils import (
    FreezeWarning,
    ParameterCount,
    count_parameters,
    freeze_delta,
    freeze_from_config,
    freeze_modules,
)
from mindpet.graph.load import UnverifiedCheckpointWarning, load_trainable, newest_whole

__all__ = [
    "FreezeWarning",
    "ParameterCount",
    "TrainableParamsCheckPoint",
    "UnverifiedCheckpointWarning",
    "count_parameters",
    "freeze_delta",
    "freeze_from_config",
    "freeze_modules",
    "load_trainable",
    "newest_whole",
]
