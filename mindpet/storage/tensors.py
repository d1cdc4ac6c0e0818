"""Safetensors files, and the model folders that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    """Return everything that a safetensors file holds; the peak of memory is the size of the result.

    Args:
        path: The file.

    Raises:
        InputError: The file does not exist, is truncated or damaged, has entries that are repeated, overlap or leave a
            gap, or holds a dtype that NumPy cannot express.
    """
    path = require_file(path)
    tensors, dtypes = {}, {}
    try:
        with safe_open(path, framework="numpy") as file:
            _refuse_repeated_names(path)
            for name in file.keys():  # noqa: SIM118
                values = file.get_tensor(name)
                tensors[name], dtypes[name] = _without_bfloat16(values), values.dtype.name
            return TensorFile(tensors, dtypes, file.metadata() or {})
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); name a file that you may read."
        ) from error
    except (SafetensorError, AttributeError) as error:  # AttributeError: a dtype that NumPy lacks, such as float8
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


def _refuse_repeated_names(path: Path) -> None:
    """Raise InputError when the header of a safetensors file names a tensor twice; the library takes the last."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            parse_json(file.read(length).decode())
        except ValueError as error:
            raise InputError(f"{path} cannot be read as safetensors ({error}): {_FETCH_AGAIN}.") from error


def _without_bfloat16(values: np.ndarray) -> np.ndarray:
    """Return bfloat16 values as float32, of which they are the upper halves; others as they are.

    The dtype is known by its name: ml_dtypes and MindSpore each bring NumPy one.
    """
    if values.dtype.name != "bfloat16":
        return values
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


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
