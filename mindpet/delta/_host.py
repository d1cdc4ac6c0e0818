"""Parameter values on the host, where every dtype can be computed with; a CPU has no product in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from mindspore import Tensor

__all__ = ["host_values", "in_float64"]

_precision: ContextVar[Any] = ContextVar("precision", default=np.float32)


def host_values(values: Any) -> np.ndarray:
    """Return a Parameter, Tensor or number as a float32 array of its own on the host, of the same shape."""
    array = values.asnumpy() if isinstance(values, Tensor) else values
    return np.array(array, _precision.get())


@contextmanager
def in_float64() -> Iterator[None]:
    """Let `host_values` give float64 meanwhile, so that a formula on the host can be its own reference."""
    token = _precision.set(np.float64)
    try:
        yield
    finally:
        _precision.reset(token)
