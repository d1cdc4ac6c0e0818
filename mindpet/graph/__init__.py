"""Freezing, and checkpoints of the trainable parameters."""

from mindpet.graph.ckpt_util import TrainableParamsCheckPoint
from mindpet.graph.distributed import gather_adapter, load_trainable_distributed
from mindpet.graph.freeze_utils import (
    FreezeWarning,
    ParameterCount,
    count_parameters,
    freeze_delta,
    freeze_from_config,
    freeze_modules,
)
from mindpet.graph.load import UnverifiedCheckpointWarning, load_trainable, newest_whole
from mindpet.graph.write import write_trainable

__all__ = [
    "FreezeWarning",
    "ParameterCount",
    "TrainableParamsCheckPoint",
    "UnverifiedCheckpointWarning",
    "count_parameters",
    "freeze_delta",
    "freeze_from_config",
    "freeze_modules",
    "gather_adapter",
    "load_trainable",
    "load_trainable_distributed",
    "newest_whole",
    "write_trainable",
]
