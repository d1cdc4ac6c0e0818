"""The record in an adapter's file: what it was trained on, checksums, and outputs that it must give again.

It stands as JSON in the metadata of `adapter_model.safetensors`, under the key `mindpet`, beside its own SHA-256.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from mindpet.storage.text import parse_json
from mindpet.utils.exceptions import InputError

__all__ = [
    "METADATA_KEY",
    "BaseTensor",
    "Input",
    "Probe",
    "Record",
    "Tolerance",
    "dump_record",
    "explain",
    "parse_record",
]

METADATA_KEY = "mindpet"

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Share = Annotated[float, Field(gt=0, lt=1)]
_Shape = tuple[Annotated[int, Field(ge=0)], ...]


class _Strict(BaseModel):
    """A part of the record: what is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseTensor(_Strict):
    """A tensor of the base network.

    Attributes:
        dtype: Its dtype when the adapter was saved.
        shape: Its shape.
        sha256: Of its bytes, and of its roundings to other floating dtypes, by dtype.
    """

    dtype: str
    shape: _Shape
    sha256: dict[str, _Digest]


class Input(_Strict):
    """How an input of a probe is made, with the probe's `numpy.random.RandomState(seed)`, one input after another.

    Attributes:
        kind: 'numbers': randint(-128, 129, shape) / 64, exact in every floating dtype; 'indices': randint(0, below,
            shape); 'zeros', whole numbers; 'padded': ones, but for zeros in the last quarter of the last row; 'open':
            zeros as floating numbers, a mask that hides nothing.
        shape: Its shape.
        below: The number of indices; 0 for other kinds.
    """

    kind: Literal["numbers", "indices", "zeros", "padded", "open"]
    shape: _Shape
    below: Annotated[int, Field(ge=0)] = 0


class Probe(_Strict):
    """An input with the output that base and adapter gave.

    Attributes:
        seed: Of the inputs.
        inputs: How they are made; of a whole network, by the name of the argument.
        dtype: The dtype that the products had, which the tolerance depends on.
        shape: The shape of the output.
        step: Every so manieth number of the output is kept.
        output: These numbers as base64 of little-endian float32.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 32)]
    inputs: dict[str, Input]
    dtype: str
    shape: _Shape
    step: Annotated[int, Field(gt=0)]
    output: str

    @property
    def expected(self) -> np.ndarray:
        """The numbers that are kept of the output, float32.

        Raises:
            ValueError: They are no base64 of float32 numbers.
        """
        return np.frombuffer(base64.b64decode(self.output, validate=True), "<f4")


class Tolerance(_Strict):
    """The largest difference that passes, divided by the largest number expected, by the dtype of the products."""

    float32: _Share
    float16: _Share
    bfloat16: _Share


class Record(_Strict):
    """Everything that is known of an adapter beside its tensors.

    Attributes:
        version: Of this form.
        methods: The configurations, as in `adapter_config.json`.
        base: Each tensor of the base that the adapter touches, by name.
        tensors: The SHA-256 of each of the adapter's own tensors, by name.
        cells: The probe of each adapted cell, by its path.
        network: The probe of the whole network, where it is one that can be run.
        cell_tolerance: For the probe of a cell.
        network_tolerance: For the probe of the whole network.
    """

    version: Literal[1]
    methods: list[JsonValue]
    base: dict[str, BaseTensor]
    tensors: dict[str, _Digest]
    cells: dict[str, Probe]
    network: Probe | None
    cell_tolerance: Tolerance
    network_tolerance: Tolerance


def dump_record(record: Record) -> str:
    """Return the record as the text of the metadata."""
    content = record.model_dump(mode="json")
    return _canonical({"sha256": _digest(content), "record": content})


def parse_record(path: Path, text: str) -> Record:
    """Read the record from the text of the metadata.

    Raises:
        InputError: It is damaged, of a later version, or holds something that is not known.
    """
    try:
        found = parse_json(text)
        if not isinstance(found, dict) or found.keys() != {"sha256", "record"}:
            raise ValueError("it has not the two parts 'sha256' and 'record'")
        if found["sha256"] != _digest(found["record"]):
            raise ValueError("it differs from its own SHA-256")
        record = Record.model_validate(found["record"])
        for probe in (*record.cells.values(), *([record.network] if record.network else [])):
            probe.expected  # noqa: B018
    except ValidationError as error:
        cause = explain(error)
    except (ValueError, RecursionError) as error:
        cause = str(error)
    else:
        return record
    raise InputError(f"{path}: the record in its metadata cannot be used ({cause}); save or fetch the adapter again.")


def explain(error: ValidationError) -> str:
    """Return the first thing that is wrong, in one line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: Any) -> str:
    """Return the one JSON text of a value."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
