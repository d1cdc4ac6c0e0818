"""How much memory a run takes; 1 MB is 1,000,000 bytes."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterable

from mindspore import Parameter

__all__ = ["parameter_megabytes", "peak_megabytes"]


def parameter_megabytes(parameters: Iterable[Parameter]) -> float:
    """Return the size of `parameters`, each object counted once."""
    unique = {id(parameter): parameter for parameter in parameters}
    return sum(math.prod(parameter.shape) * parameter.itemsize for parameter in unique.values()) / 1e6


def peak_megabytes() -> float:
    """Return the largest resident size that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
