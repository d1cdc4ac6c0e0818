"""Reading weights from a Hugging Face folder: one table of names, everything checked before one is written."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from mindspore import Parameter, Tensor

from mindpet.storage.reader import read_sharded_safetensors
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import file_name

__all__ = [
    "ENCODER_PREFIX",
    "file_name",
    "load_parameters",
    "read_bert_tensors",
    "read_language_tensors",
    "without",
]

T = TypeVar("T")

ENCODER_PREFIX = "bert."
_HEADS = ("classifier.", "cls.")
_LANGUAGE_HEAD = "lm_head.weight"

# What files of 2018 call the tensors of a LayerNorm.
_OLD_LEAVES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Constants and pretraining heads (masked words, next sentence), which no network here has.
_IGNORED_NAME = "embeddings.position_ids"
_IGNORED_PREFIX = "cls."


def read_bert_tensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Return the weights in a folder under the names of `BertForSequenceClassification`.

    The prefix `bert.` is added where a file leaves it out, old LayerNorm names are modernised, position numbers and
    pretraining heads are left out.

    Raises:
        InputError: No readable safetensors files, or one tensor under two names.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, values in read_sharded_safetensors(folder).items():
        if name.startswith(_IGNORED_PREFIX) or name.removeprefix(ENCODER_PREFIX) == _IGNORED_NAME:
            continue
        modern = _modern_name(name)
        if modern in tensors:
            raise InputError(f"{folder} holds {modern!r} under two names: save the model again with transformers.")
        tensors[modern] = values
    return tensors


def read_language_tensors(folder: str | Path, prefix: str, constants: str, tied: bool) -> dict[str, np.ndarray]:
    """Return the weights in a folder under the names of a language model with its head.

    Args:
        folder: The model's folder.
        prefix: Of the names of the decoder; it is added where a file without a head leaves it out.
        constants: A regular expression of what comes after the prefix in the names of tensors that are no weights.
        tied: Whether the head is the embedding of the words; a copy of the embedding as the head is then left out.

    Raises:
        InputError: No readable safetensors files, or a tied head that is not the embedding.
    """
    tensors = {
        name if name.startswith((prefix, _LANGUAGE_HEAD)) else prefix + name: values
        for name, values in read_sharded_safetensors(folder).items()
        if not re.fullmatch(constants, name.removeprefix(prefix))
    }
    head = tensors.pop(_LANGUAGE_HEAD, None) if tied else None
    if head is not None and not any(np.array_equal(head, values) for values in tensors.values()):
        raise InputError(
            f"{folder} holds a {_LANGUAGE_HEAD} of its own, but its config.json ties the head to the embedding: set "
            "tie_word_embeddings to false, or save the model again with transformers."
        )
    return tensors


def without(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose name doesn't start with `prefix`."""
    return {name: value for name, value in named.items() if not name.startswith(prefix)}


def load_parameters(parameters: Mapping[str, Parameter], tensors: dict[str, np.ndarray], folder: str | Path) -> None:
    """Move `tensors` into `parameters` as float32, all of them or none.

    An array that is float32 in rows becomes the parameter's own memory, and any other is freed once it is copied.

    Args:
        parameters: By their names in Hugging Face files.
        tensors: By the same names. Each is taken out.
        folder: Where the tensors came from, for the message.

    Raises:
        InputError: Tensors that are missing, unexpected, of another shape, no floating-point numbers, or not finite;
            the message lists them all.
    """
    common = sorted(parameters.keys() & tensors.keys())
    problems = {
        "missing": sorted(parameters.keys() - tensors.keys()),
        "not expected": sorted(tensors.keys() - parameters.keys()),
        "wrong shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(parameters[name].shape)}"
            for name in common
            if tensors[name].shape != parameters[name].shape
        ],
        "no floating-point numbers": [
            f"{name} ({tensors[name].dtype})" for name in common if tensors[name].dtype.kind != "f"
        ],
        "NaN or infinite": [
            name for name in common if tensors[name].dtype.kind == "f" and not _is_finite(tensors[name])
        ],
    }
    found = "; ".join(f"{problem}: {_some(names)}" for problem, names in problems.items() if names)
    if found:
        raise InputError(
            f"{_weights_file(folder)} does not fit config.json beside it ({found}); expected are exactly "
            "this model's tensors, as finite floating-point numbers: fetch the folder again or correct config.json."
        )
    for name in common:
        values = np.require(tensors.pop(name), np.float32, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])
        parameters[name].set_data(Tensor.from_numpy(values))


def _is_finite(values: np.ndarray) -> bool:
    """Tell whether every value is a finite number in float32 too."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32, copy=False)).all())


def _weights_file(folder: str | Path) -> Path:
    whole = Path(folder) / "model.safetensors"
    return whole if whole.exists() else whole.with_name("model.safetensors.index.json")


def _modern_name(name: str) -> str:
    for old, new in _OLD_LEAVES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith((ENCODER_PREFIX, *_HEADS)) else ENCODER_PREFIX + name


def _some(names: list[str], limit: int = 8) -> str:
    """Join up to `limit` names and say how many follow."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
