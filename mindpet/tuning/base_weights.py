"""The values that weights had before a merge: kept on the host, or found again in a model's folder by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mindspore import Parameter

from mindpet.storage.reader import read_sharded_safetensors
from mindpet.tuning.rounding import round_to
from mindpet.utils.exceptions import InputError

__all__ = ["BaseWeight", "find_in_folder"]


@dataclass(frozen=True)
class BaseWeight:
    """A parameter before a merge.

    Attributes:
        parameter: The parameter.
        shape: Its shape.
        dtype: The name of its dtype.
        sha256: Of its bytes, in rows.
        values: The values themselves in the parameter's dtype, or None where they are not kept.
    """

    parameter: Parameter
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    values: np.ndarray | None

    @classmethod
    def of(cls, parameter: Parameter, values: np.ndarray, keep: bool) -> BaseWeight:
        """Remember what `parameter` holds; `values` are a copy of it."""
        return cls(parameter, values.shape, values.dtype.name, _digest(values), values if keep else None)


def find_in_folder(weights: Sequence[BaseWeight], folder: str | Path) -> dict[int, np.ndarray]:
    """Return the values of each weight, by its `id`, from a Hugging Face folder.

    Raises:
        InputError: The folder cannot be read, or holds no tensor that is one of the weights.
    """
    tensors = read_sharded_safetensors(folder)
    found: dict[int, np.ndarray] = {}
    for shape, dtype in sorted({(weight.shape, weight.dtype) for weight in weights}):
        wanted = {weight.sha256: weight for weight in weights if (weight.shape, weight.dtype) == (shape, dtype)}
        for values in _of_shape(tensors, shape):
            rounded = np.ascontiguousarray(round_to(values, dtype))
            digest = _digest(rounded)
            found |= {id(weight): rounded for weight in weights if weight.sha256 == digest and digest in wanted}
    missing = [weight for weight in weights if id(weight) not in found]
    if missing:
        raise InputError(
            f"{folder} holds no tensor with the values that {missing[0].parameter.name} ({missing[0].dtype} "
            f"{list(missing[0].shape)}) and {len(missing) - 1} others had before the merge; give the folder from which "
            "this very network was loaded"
        )
    return found


def _of_shape(tensors: dict[str, np.ndarray], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the floating-point tensors of a shape, and matrices that have it once they are transposed."""
    for values in tensors.values():
        if values.dtype.kind != "f":
            continue
        if values.shape == shape:
            yield values
        if len(shape) == 2 and values.shape == shape[::-1]:
            yield values.T


def _digest(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
