"""Reading safetensors files: the format's own header, checked completely before a single value is read.

A file is an eight-byte little-endian header length, the header (a JSON object from a name to dtype, shape and the first
and last byte of the values) and the values. The entries must cover the rest of the file without gap or overlap.
"""

import json
import math
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mindpet.storage.text import parse_json, read_json, require_file, require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["read_safetensors", "read_sharded_safetensors"]

_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # NumPy has no bfloat16: its bits, widened to float32 after reading.
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_WHOLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FETCH_AGAIN = "the file is damaged or incomplete, fetch it again"


class _Entry(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Return all tensors of a safetensors file, by name, in the order in which they lie in the file.

    Each tensor is read straight into its own array, so the peak is the size of the result. BF16 becomes float32, which
    holds every bfloat16 value exactly; every other dtype stays what it is.

    Args:
        path: The file.

    Returns:
        Writable arrays that own their memory.

    Raises:
        InputError: The file does not exist, is truncated or damaged, has entries that are repeated, overlap or leave a
            gap, or holds a dtype that NumPy cannot express.
    """
    path = require_file(path)
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            entries, start = _read_header(path, file, size)
            _check_coverage(path, entries, size - start)
            return {entry.name: _read_tensor(path, file, start, entry) for entry in entries}
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); name a file that you may read."
        ) from error


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


def _read_header(path: Path, file: BufferedReader, size: int) -> tuple[list[_Entry], int]:
    """Return the entries in the order of their bytes, and where in the file byte 0 of the values lies."""
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
        raise InputError(f"{path} is no complete safetensors file ({size} bytes): {_FETCH_AGAIN}.")
    try:
        header = parse_json(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        cause = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InputError(f"{path} has a header that cannot be read ({cause}): {_FETCH_AGAIN}.") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} has a header that is no JSON object: {_FETCH_AGAIN}.")
    header.pop("__metadata__", None)
    entries = [_parse_entry(path, name, fields) for name, fields in header.items()]
    return sorted(entries, key=lambda entry: (entry.begin, entry.end)), 8 + length


def _parse_entry(path: Path, name: str, fields: Any) -> _Entry:
    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        numbers = (*shape, begin, end)
        if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers):
            raise TypeError
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} describes the tensor {name!r} wrongly: {_FETCH_AGAIN}.") from error
    if dtype not in _DTYPES:
        raise InputError(
            f"{path} holds {name!r} as {dtype!r}; accepted are {', '.join(_DTYPES)}: convert the file to one of them."
        )
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != expected:
        raise InputError(
            f"{path} gives {name!r} {end - begin} bytes, but its shape {list(shape)} and {dtype} need {expected}: "
            f"{_FETCH_AGAIN}."
        )
    return _Entry(name, dtype, shape, begin, end)


def _check_coverage(path: Path, entries: list[_Entry], available: int) -> None:
    position = 0
    for entry in entries:
        if entry.begin != position:
            problem = "overlaps the one before it" if entry.begin < position else "comes after a gap"
            raise InputError(f"{path} holds the tensor {entry.name!r}, which {problem}: {_FETCH_AGAIN}.")
        position = entry.end
    if position != available:
        raise InputError(f"{path} holds {available} bytes of values where its header lists {position}: {_FETCH_AGAIN}.")


def _read_tensor(path: Path, file: BufferedReader, start: int, entry: _Entry) -> np.ndarray:
    values = np.empty(entry.shape, _DTYPES[entry.dtype])
    file.seek(start + entry.begin)
    flat = values.reshape(-1).view(np.uint8)
    if values.size and file.readinto(flat.data) != values.nbytes:
        raise InputError(f"{path} ended while {entry.name!r} was read: {_FETCH_AGAIN}.")
    if entry.dtype == "BOOL" and flat.size and flat.max() > 1:
        raise InputError(f"{path} holds {entry.name!r} as BOOL with a byte other than 0 and 1: {_FETCH_AGAIN}.")
    if entry.dtype == "BF16":
        return _widen_bfloat16(values)
    return values


def _widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values whose upper 16 bits are `bits`: a bfloat16 is a float32 cut in half."""
    widened = bits.astype(np.uint32)
    np.left_shift(widened, 16, out=widened)
    return widened.view(np.float32)


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
