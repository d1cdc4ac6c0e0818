"""Safetensors files, and the model folders that hold them.

The safetensors library checks a file's header against the file. The values are read without it, each tensor straight
into its array: the library maps the file, and its pages would count as memory of the process beside the arrays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mindpet.storage.atomic import write_bytes
from mindpet.storage.text import parse_json, read_json, require_file, require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["TensorFile", "read_safetensors", "read_sharded_safetensors", "read_tensor_file", "write_safetensors"]

_WHOLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FETCH_AGAIN = "the file is damaged or incomplete, fetch it again"

# The dtypes in NumPy of those in a file. It has no bfloat16: its bits are read, and become float32.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds.

    Attributes:
        tensors: Each in an array of its own, by name; BF16 as float32, which holds every bfloat16 value exactly.
        dtypes: The dtype of each in the file, by name: 'float32', 'bfloat16' and so on.
        metadata: The texts in its header, by name.
    """

    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_tensor_file(path: str | Path) -> TensorFile:
    """Return everything that a safetensors file holds.

    The peak of memory is the size of the result; bfloat16 adds at most half of the largest tensor.

    Args:
        path: The file.

    Raises:
        InputError: The file does not exist, is truncated or damaged, has entries that are repeated, overlap or leave a
            gap, or holds a dtype that NumPy cannot express.
    """
    path = require_file(path)
    tensors, dtypes = {}, {}
    try:
        with safe_open(path, framework="numpy") as checked, path.open("rb") as file:
            header = _read_header(path, file)
            start = file.tell()
            for name in checked.keys():  # noqa: SIM118
                file.seek(start + header[name]["data_offsets"][0])
                tensors[name] = _read_values(path, file, name, header[name])
                dtypes[name] = "bfloat16" if header[name]["dtype"] == "BF16" else tensors[name].dtype.name
            return TensorFile(tensors, dtypes, checked.metadata() or {})
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); name a file that you may read."
        ) from error
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}): {_FETCH_AGAIN}.") from error


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file by name; see `read_tensor_file`."""
    return read_tensor_file(path).tensors


def write_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], dtypes: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: The file to write. Its folder must exist.
        tensors: By name, bfloat16 values as float32.
        dtypes: The dtype of each in the file, by name.
        metadata: Texts for its header, by name.

    Raises:
        InputError: The path cannot be written.
    """
    arrays = {name: _as_stored(values, dtypes[name]) for name, values in tensors.items()}
    write_bytes(path, save(arrays, dict(metadata)))


def read_sharded_safetensors(folder: str | Path) -> dict[str, np.ndarray]:
    """Return all tensors of a Hugging Face model folder.

    Reads `model.safetensors`, else the shards that `model.safetensors.index.json` lists.

    Args:
        folder: The model's folder.

    Returns:
        Tensors by name, as `read_safetensors` gives them.

    Raises:
        InputError: The folder does not exist or has neither file, a shard is missing or damaged, or the shards do not
            hold exactly the tensors that the index lists.
    """
    folder = require_folder(folder)
    if (folder / _WHOLE_FILE).exists():
        return read_safetensors(folder / _WHOLE_FILE)
    if (folder / _INDEX_FILE).exists():
        return _read_shards(folder, _read_index(folder / _INDEX_FILE))
    torch_file = next((name for name in _TORCH_FILES if (folder / name).exists()), None)
    found = f"only {torch_file}, a pickle that could run code" if torch_file else "no weights"
    raise InputError(
        f"{folder} holds {found}; expected {_WHOLE_FILE} or {_INDEX_FILE} with its shards: "
        f"{'save the model as safetensors' if torch_file else 'name the folder of a downloaded model'}."
    )


def _read_header(path: Path, file: BufferedReader) -> dict[str, Any]:
    """Return the header of a safetensors file, which the library has checked.

    Raises:
        InputError: It names a tensor twice, of which the library takes the last.
    """
    length = int.from_bytes(file.read(8), "little")
    try:
        return parse_json(file.read(length).decode())
    except ValueError as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}): {_FETCH_AGAIN}.") from error


def _read_values(path: Path, file: BufferedReader, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Return the tensor that begins where `file` stands, with BF16 as float32.

    Args:
        path: The file, for the message.
        file: The file.
        name: The tensor's name, for the message.
        entry: The tensor's entry in the header.
    """
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in _DTYPES:
        raise InputError(
            f"{path} holds {name!r} as {dtype}; accepted are {', '.join(_DTYPES)}: save the model again as one of them."
        )
    values = np.fromfile(file, _DTYPES[dtype], math.prod(shape))
    if values.size < math.prod(shape):
        raise InputError(f"{path} ended while {name!r} was read: {_FETCH_AGAIN}.")
    if dtype == "BF16":  # a bfloat16 is the upper half of a float32
        values = np.left_shift(values, 16, dtype=np.uint32).view(np.float32)
    return values.reshape(shape)


def _as_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values in the dtype of a file."""
    return values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, order="C")


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of the shard that holds each tensor."""
    index = read_json(path)
    shard_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shard_of, dict) or not shard_of:
        raise InputError(f"{path} has no `weight_map` from tensor to file: {_FETCH_AGAIN}.")
    for tensor, shard in shard_of.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise InputError(
                f"{path} says that {tensor!r} lies in {shard!r}; expected is the name of a .safetensors file in the "
                "same folder: fetch the file again."
            )
    return shard_of


def _read_shards(folder: Path, shard_of: dict[str, str]) -> dict[str, np.ndarray]:
    shards = sorted(set(shard_of.values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise InputError(f"{folder / shard} is missing, but {_INDEX_FILE} lists it: fetch this shard too.")
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        found = read_safetensors(folder / shard)
        listed = {tensor for tensor, home in shard_of.items() if home == shard}
        if missing := sorted(listed - found.keys()):
            raise InputError(
                f"{folder / shard} lacks {missing[0]!r}, which {_INDEX_FILE} places there: fetch both again."
            )
        if extra := sorted(found.keys() - listed):
            raise InputError(
                f"{folder / shard} holds {extra[0]!r}, which {_INDEX_FILE} does not place there: fetch both again."
            )
        tensors.update(found)
    return tensors
