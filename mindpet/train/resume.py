"""The state from which a run goes on after it was ended or killed, in one file that is always whole.

The file holds the values of everything that a step changes, the position, and what the run was made from. It is
replaced by a rename once the new one is on the disk, and each tensor in it has a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from mindspore import Parameter, Tensor
from safetensors import safe_open

from mindpet.data.batches import Batch
from mindpet.storage.atomic import write_bytes
from mindpet.storage.reader import read_safetensors
from mindpet.train.loop import Position
from mindpet.utils.exceptions import InputError

__all__ = ["Origin", "SavedRun", "fingerprint_data", "fingerprint_parameters", "put_back", "read_run", "write_run"]

_VERSION = 1
_START_AGAIN = "start again with --overwrite"


@dataclass(frozen=True)
class Origin:
    """What a run is made from, and what must be the same when it is resumed.

    Attributes:
        settings: The settings that decide how it goes, as plain values.
        data: Fingerprint of the label names, the encoded texts, their labels and the order in which they come.
        model: Fingerprint of the base model.
    """

    settings: dict[str, Any]
    data: str
    model: str


@dataclass(frozen=True)
class SavedRun:
    """A run at the moment when it was saved.

    Attributes:
        origin: What it is made from.
        position: Where it was.
        baselines: The baselines' accuracies by their names in the metrics.
        peak_memory_mb: The largest size that a process of the run has had.
        tensors: The values of everything that a step changes.
    """

    origin: Origin
    position: Position
    baselines: dict[str, float | None]
    peak_memory_mb: float
    tensors: dict[str, np.ndarray]

    def require_origin(self, origin: Origin, path: Path) -> None:
        """Refuse to go on with something else than what the run was made from.

        Raises:
            InputError: A setting, the data or the model is another one.
        """
        for name in origin.settings.keys() | self.origin.settings.keys():
            then, now = self.origin.settings.get(name), origin.settings.get(name)
            if then != now:
                raise InputError(
                    f"{path}: the run was saved with {name} {then!r}, and its settings now say {now!r}; put the former "
                    f"value back into the run's settings, or {_START_AGAIN}"
                )
        for what, then, now in (("data", self.origin.data, origin.data), ("model", self.origin.model, origin.model)):
            if then != now:
                raise InputError(
                    f"{path}: the {what} is not what it was when the run was saved; give the former one with --{what}, "
                    f"or {_START_AGAIN}"
                )


def write_run(path: Path, saved: SavedRun) -> None:
    """Write `saved` to `path`, in place of an earlier state, which stays whole until this one is.

    Raises:
        InputError: The file cannot be written; the earlier state is untouched.
    """
    about = json.dumps(
        {
            "version": _VERSION,
            "origin": asdict(saved.origin),
            "position": asdict(saved.position),
            "baselines": saved.baselines,
            "peak_memory_mb": saved.peak_memory_mb,
            "sha256": {name: _checksum(values) for name, values in saved.tensors.items()},
        }
    )
    metadata = {"about": about, "sha256": hashlib.sha256(about.encode()).hexdigest()}
    write_bytes(path, safetensors.numpy.save(saved.tensors, metadata))


def read_run(path: Path) -> SavedRun:
    """Read what `write_run` has written.

    Raises:
        InputError: The file cannot be read, is no state, is one of another version, or differs from its checksums.
    """
    tensors = read_safetensors(path)
    about = _read_about(path)
    sums = about["sha256"]
    damaged = sorted(name for name in sums.keys() | tensors.keys() if not _agrees(tensors.get(name), sums.get(name)))
    if damaged:
        raise InputError(f"{path} is damaged: {damaged[0]} differs from its checksum; {_START_AGAIN}")
    return SavedRun(
        origin=Origin(**about["origin"]),
        position=Position(**about["position"]),
        baselines=about["baselines"],
        peak_memory_mb=about["peak_memory_mb"],
        tensors=tensors,
    )


def put_back(tensors: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter], path: Path) -> None:
    """Write saved values into the parameters, all of them or, when one does not fit, none.

    Args:
        tensors: The values by name.
        parameters: The parameters by the same names.
        path: Where the values come from.

    Raises:
        InputError: A name, shape or dtype differs.
    """
    before = {name: parameter.asnumpy() for name, parameter in parameters.items()}
    for name in sorted(before.keys() | tensors.keys()):
        found, expected = (_describe(values.get(name)) for values in (tensors, before))
        if found != expected:
            raise InputError(
                f"{path}: {name} is {found} in the file and {expected} in this program, which is another version than "
                f"the one that wrote it; use that one, or {_START_AGAIN}"
            )
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(tensors[name]))


def fingerprint_data(label_names: Sequence[str], batches: Iterable[Batch]) -> str:
    """Return a text that is the same for the same labels and the same batches in the same order only."""
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for batch in batches:
        for values in batch:
            digest.update(_checksum(values).encode())
    return digest.hexdigest()


def fingerprint_parameters(parameters: Iterable[Parameter]) -> str:
    """Return a text that is the same for the same names and values only."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(f"{parameter.name} {_checksum(parameter.asnumpy())}\n".encode())
    return digest.hexdigest()


def _read_about(path: Path) -> dict[str, Any]:
    """Return what the file says besides its tensors."""
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() or {}
    about = metadata.get("about", "")
    if "about" not in metadata or "sha256" not in metadata:
        raise InputError(f"{path} is no state of a run; {_START_AGAIN}")
    if hashlib.sha256(about.encode()).hexdigest() != metadata["sha256"]:
        raise InputError(f"{path} is damaged: its description differs from its checksum; {_START_AGAIN}")
    described = json.loads(about)
    if described["version"] != _VERSION:
        raise InputError(
            f"{path} has the form {described['version']} and this program knows {_VERSION}; resume with the version "
            f"that wrote it, or {_START_AGAIN}"
        )
    return described


def _agrees(values: np.ndarray | None, checksum: str | None) -> bool:
    return values is not None and _checksum(values) == checksum


def _checksum(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and bytes."""
    digest = hashlib.sha256(_describe(values).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _describe(values: np.ndarray | None) -> str:
    return "missing" if values is None else f"{values.dtype} {values.shape}"
