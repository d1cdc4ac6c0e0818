"""Rounding on the host to the dtypes of weights."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["FLOATS", "round_to"]

FLOATS: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def round_to(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Return float32 values rounded to the nearest number of `dtype`, ties to even; too large ones are infinite.

    Args:
        values: Any array.
        dtype: A NumPy dtype or its name; 'bfloat16' whoever has brought it to NumPy.
    """
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    with np.errstate(over="ignore"):
        return values.astype(FLOATS[name])
