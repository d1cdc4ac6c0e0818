"""Values of parameters, written so that whatever was compiled sees them, and the part of a larger parameter they fill.

`Parameter.copy_` writes into the memory that a parameter has. Graphs, optimizers and functions under `ms.jit` keep that
memory, even those that took a value as a constant; `Parameter.set_data` would give the parameter another. So nothing is
compiled anew (measured on MindSpore 2.7 to 2.10, in both modes).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from mindspore import Parameter, Tensor

__all__ = ["crop", "pad", "read_values", "write_values"]


def read_values(parameter: Parameter) -> np.ndarray:
    """Copy a parameter to the host, in its own dtype."""
    return parameter.asnumpy().copy()


def write_values(changes: Iterable[tuple[Parameter, np.ndarray]]) -> None:
    """Write values of each parameter's own shape into it; if one fails, all keep the old ones."""
    prepared = [(parameter, Tensor(values, parameter.dtype), read_values(parameter)) for parameter, values in changes]
    try:
        for parameter, values, _ in prepared:
            parameter.copy_(values)
    except BaseException:
        for parameter, _, old in prepared:
            parameter.copy_(Tensor(old, parameter.dtype))
        raise


def pad(values: np.ndarray, shape: tuple[int, ...], groups: int = 1) -> np.ndarray:
    """Return `values` followed by zeros along each axis, up to `shape`.

    Args:
        values: An array that is nowhere larger than `shape`.
        shape: The wanted shape.
        groups: Into how many equal parts the first axis falls, each of which is padded by itself.
    """
    padded = np.zeros((groups, shape[0] // groups, *shape[1:]) if groups > 1 else shape, values.dtype)
    parts = values.reshape(groups, -1, *values.shape[1:]) if groups > 1 else values
    padded[_corner(parts.shape)] = parts
    return padded.reshape(shape)


def crop(values: np.ndarray, shape: tuple[int, ...], groups: int = 1) -> np.ndarray:
    """Return a copy of the part of `values` that `pad` has put there, of the given shape."""
    if groups == 1:
        return values[_corner(shape)].copy()
    parts = values.reshape(groups, -1, *values.shape[1:])
    return parts[_corner((groups, shape[0] // groups, *shape[1:]))].reshape(shape)


def _corner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)
