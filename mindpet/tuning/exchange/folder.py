"""The folder of an adapter: `adapter_config.json`, `adapter_model.safetensors` and a model card."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mindpet import __version__
from mindpet.storage.atomic import make_folder, place_folder, write_json, write_text
from mindpet.storage.reader import TensorFile, read_bytes, read_tensor_file, require_file
from mindpet.storage.tensors import write_safetensors
from mindpet.tuning.exchange.adapter import Adapter, parse_methods
from mindpet.tuning.exchange.record import METADATA_KEY, Record, dump_record, explain, parse_record
from mindpet.tuning.exchange.values import HostTensor
from mindpet.utils.exceptions import InputError

__all__ = [
    "CONFIG_FILE",
    "PROJECTION_FILE",
    "TENSOR_FILE",
    "Content",
    "check_target",
    "host_tensors",
    "read_folder",
    "read_own_file",
    "staged_folder",
    "write_folder",
    "write_tensors",
]

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_CARD_FILE = "README.md"
PROJECTION_FILE = "mindpet_projection.safetensors"  # in a folder of PEFT's, what makes its prompt
_OF_TORCH = {"format": "pt"}  # by which transformers knows whose names they are
_BOTTLENECK_FILES = {"adapter.safetensors", "model_head.safetensors", "head_config.json"}  # of the adapters library
_FILES = {CONFIG_FILE, TENSOR_FILE, _CARD_FILE, PROJECTION_FILE} | _BOTTLENECK_FILES


class _Config(BaseModel):
    """The content of `adapter_config.json`.

    Attributes:
        format: Tells our files from others of this name.
        format_version: Of this form.
        mindpet_version: That wrote the folder.
        base_model_name_or_path: What the adapter was trained on, as the user named it.
        methods: One block a method.
        weights_sha256: Of the file with the tensors, so that the two cannot be parted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["mindpet"]
    format_version: Literal[1]
    mindpet_version: str
    base_model_name_or_path: str | None
    methods: Annotated[list[JsonValue], Field(min_length=1)]
    weights_sha256: str


@dataclass(frozen=True)
class Content:
    """The files of a folder in another library's form, by name.

    Attributes:
        objects: What stands as JSON.
        tensors: What stands as safetensors.
        metadata: Texts for the headers of some of these, which are not for torch.
    """

    objects: dict[str, dict[str, Any]]
    tensors: dict[str, dict[str, HostTensor]]
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files into a folder."""
        for name, tensors in self.tensors.items():
            write_tensors(folder / name, tensors, self.metadata.get(name, _OF_TORCH))
        for name, content in self.objects.items():
            write_json(folder / name, content)


def check_target(folder: Path, overwrite: bool) -> None:
    """Refuse a place where no folder can be made without losing something.

    Raises:
        InputError: Something stands there that is not to be replaced.
    """
    try:
        problem = _find_obstacle(folder, overwrite)
    except OSError as error:  # a name that is too long, or no right to look
        problem = f"cannot be written ({error.strerror or error})"
    if problem:
        raise InputError(f"{folder} {problem}; name another folder.")


def _find_obstacle(folder: Path, overwrite: bool) -> str | None:
    if folder.is_symlink():
        return "is a symbolic link"
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "is a file"
    names = sorted(entry.name for entry in folder.iterdir())
    if foreign := [name for name in names if name not in _FILES]:
        return f"holds {foreign[0]!r}, which no adapter's folder has"
    return "holds an adapter already; pass overwrite=True to replace it" if names and not overwrite else None


def write_folder(
    folder: Path, tensors: Mapping[str, HostTensor], record: Record, base: str | None, card: str, overwrite: bool
) -> None:
    """Write an adapter's folder whole, or leave everything as it was.

    Raises:
        InputError: It cannot be written, or something stands there that is not to be replaced.
    """
    with staged_folder(folder, overwrite, check_target) as staged:
        write_tensors(staged / TENSOR_FILE, tensors, {METADATA_KEY: dump_record(record)})
        config = _Config(
            format="mindpet",
            format_version=1,
            mindpet_version=__version__,
            base_model_name_or_path=base,
            methods=record.methods,
            weights_sha256=_digest(staged / TENSOR_FILE),
        )
        write_json(staged / CONFIG_FILE, config.model_dump(mode="json"))
        write_text(staged / _CARD_FILE, card)


@contextmanager
def staged_folder(folder: Path, overwrite: bool, check: Callable[[Path, bool], None]) -> Iterator[Path]:
    """Give a folder to write into, which gets the name `folder` when all is written, or is removed after an error.

    Args:
        folder: The name. The folders above it are made.
        overwrite: Whether a folder of that name is replaced.
        check: Refuses a place where something would be lost.

    Raises:
        InputError: It cannot be written, or something stands there that is not to be replaced.
    """
    make_folder(folder.parent)
    staged = folder.with_name(f".{folder.name}-staging-{uuid.uuid4().hex}")
    try:
        make_folder(staged)
        yield staged
        check(folder, overwrite)
        place_folder(staged, folder, overwrite)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_tensors(file: Path, tensors: Mapping[str, HostTensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file, each in its own dtype."""
    values = {name: tensor.values for name, tensor in tensors.items()}
    write_safetensors(file, values, {name: tensor.dtype for name, tensor in tensors.items()}, metadata)


def read_folder(folder: Path, content: Any) -> Adapter:
    """Read a folder that `write_folder` has written.

    Args:
        folder: The folder.
        content: What its `adapter_config.json` holds.

    Raises:
        InputError: A file is missing or damaged, the two files do not belong together, or the configuration holds
            something unknown.
    """
    config = _parse_config(folder / CONFIG_FILE, content)
    file = require_file(folder / TENSOR_FILE)
    if _digest(file) != config.weights_sha256:
        raise InputError(
            f"{file} is not the file that {CONFIG_FILE} was written with: it is damaged, or of another adapter; fetch"
            " both again."
        )
    adapter = read_own_file(file)
    if adapter is None:
        raise InputError(f"{file} holds no record of an adapter; fetch it again.")
    if adapter.record is None or adapter.record.methods != config.methods:
        raise InputError(
            f"{folder / CONFIG_FILE}: the methods are not those that the adapter was saved with; fetch the file again."
            " To train on with other settings, attach with these and load then."
        )
    return adapter


def read_own_file(file: Path) -> Adapter | None:
    """Read an adapter from its file of tensors alone, which says everything that loading needs.

    Returns:
        The adapter, or None if the file has no record of ours.

    Raises:
        InputError: The file is damaged.
    """
    found = read_tensor_file(file)
    if METADATA_KEY not in found.metadata:
        return None
    record = parse_record(file, found.metadata[METADATA_KEY])
    return Adapter(file, parse_methods(file, record.methods), host_tensors(found), record)


def host_tensors(file: TensorFile) -> dict[str, HostTensor]:
    """Return what a safetensors file holds, by name."""
    return {name: HostTensor(values, file.dtypes[name]) for name, values in file.tensors.items()}


def _parse_config(path: Path, content: Any) -> _Config:
    try:
        return _Config.model_validate(content)
    except ValidationError as error:
        raise InputError(
            f"{path} is no configuration of an adapter ({explain(error)}); correct it or fetch it again."
        ) from error


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()
