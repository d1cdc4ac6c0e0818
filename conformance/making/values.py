"""Numbers that come out the same on every machine: no generator of torch, no rounding."""

from __future__ import annotations

import re
import zlib

import numpy as np

__all__ = ["values"]

_GRID = 1024  # every number is a whole multiple of 1 / _GRID, so that there is nothing to round

# Factors, which are 1 where they do nothing: of IA3, of DoRA, and of normalisations.
_FACTOR = re.compile(r"ia3|magnitude|(norm|ln_\w)\.(weight|gamma)", re.IGNORECASE)


def values(owner: str, name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """Return float32 numbers as training could leave them.

    Args:
        owner: The base or case that has the tensor, and
        name: its name: the two choose the numbers.
        shape: Its shape.
        spread: How far the numbers are at most from 0, from 1 where they are factors.
    """
    generator = np.random.RandomState(zlib.crc32(f"{owner}/{name}".encode()))  # the same in every version of NumPy
    steps = int(spread * _GRID)
    centre = 1.0 if _FACTOR.search(name) else 0.0
    return (centre + generator.randint(-steps, steps + 1, shape) / _GRID).astype(np.float32)
