"""Parameter values on the host, where every dtype can be computed with; a CPU has no product in bfloat16."""

from typing import Any

import numpy as np
from mindspore import Tensor

__all__ = ["host_values"]


def host_values(values: Any) -> np.ndarray:
    """Return a Parameter, Tensor or number as a float32 array of its own on the host, of the same shape."""
    array = values.asnumpy() if isinstance(values, Tensor) else values
    return np.array(array, np.float32)
