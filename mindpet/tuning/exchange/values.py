"""Values of parameters on the host, and how a tensor is recognised: by the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import mindspore
import ml_dtypes
import numpy as np
from mindspore import Tensor

from mindpet.tuning.exchange.record import BaseTensor

__all__ = ["FLOATS", "HostTensor", "digest", "find_rounding", "fingerprint", "read"]

FLOATS = ("float32", "float16", "bfloat16")  # the finest first


@dataclass(frozen=True)
class HostTensor:
    """A tensor on the host.

    Attributes:
        values: The values, bfloat16 as float32, which holds each exactly.
        dtype: The tensor's dtype, by name: 'float32', 'bfloat16' and so on.
    """

    values: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.values.shape

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def read(tensor: Tensor) -> HostTensor:
    """Copy a tensor or parameter to the host."""
    dtype = str(tensor.dtype).lower()
    values = (tensor.astype(mindspore.float32) if dtype == "bfloat16" else tensor).asnumpy()
    return HostTensor(values.copy(), dtype)


def digest(tensor: HostTensor, dtype: str | None = None) -> str:
    """Return the SHA-256 of a tensor's bytes, in rows and little-endian, after rounding it to `dtype`."""
    return hashlib.sha256(_round(tensor.values, dtype or tensor.dtype).tobytes()).hexdigest()


def fingerprint(tensor: HostTensor) -> BaseTensor:
    """Return what a tensor is recognised by later, also when it has been cast to another floating dtype."""
    dtypes = FLOATS if tensor.dtype in FLOATS else (tensor.dtype,)
    return BaseTensor(dtype=tensor.dtype, shape=tensor.shape, sha256={dtype: digest(tensor, dtype) for dtype in dtypes})


def find_rounding(tensor: HostTensor, recorded: BaseTensor) -> str | None:
    """Return the dtype whose rounding of the recorded tensor this one holds, or None if it is another tensor.

    A tensor may hold values in a wider dtype than they were rounded to: what was float16 once stays so in float32.
    """
    if tensor.shape != recorded.shape:
        return None
    narrower = FLOATS[FLOATS.index(tensor.dtype) :] if tensor.dtype in FLOATS else (tensor.dtype,)
    for dtype in narrower:
        rounded = _round(tensor.values, dtype)
        holds_no_more = dtype == tensor.dtype or np.array_equal(rounded.astype(tensor.values.dtype), tensor.values)
        if holds_no_more and digest(tensor, dtype) == recorded.sha256.get(dtype):
            return dtype
    return None


def _round(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in a dtype; a number too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        rounded = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return rounded.astype(rounded.dtype.newbyteorder("<")) if rounded.dtype.byteorder == ">" else rounded
