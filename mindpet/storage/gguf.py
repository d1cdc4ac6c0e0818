"""GGUF files: the metadata and the dequantised tensors of models as llama.cpp stores them."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from mindpet.storage.text import read_bytes
from mindpet.utils.exceptions import InputError

__all__ = ["GgufFile", "read_gguf"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file holds.

    Attributes:
        path: The file.
        fields: The metadata by key; arrays are lists.
        tensors: By name, float32, in NumPy's order of axes (a dense layer's weight is (out, in)).
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, np.ndarray]


class _Damaged(ValueError):
    """The bytes are no GGUF file; the message says what is wrong."""


class _Cursor:
    """Reads little-endian values one after the other, never beyond the end."""

    def __init__(self, data: memoryview):
        self._data = data
        self.place = 0

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self.place:
            raise _Damaged("it ends early")
        self.place += size
        return self._data[self.place - size : self.place]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        return bytes(self.take(self.number("Q"))).decode()

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"it has a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            return list(self.numbers(_NUMBERS[kind], count))
        return [self.value(kind) for _ in range(count)]


def read_gguf(path: str | Path) -> GgufFile:
    """Return the metadata and the tensors of a GGUF file, versions 2 and 3, little-endian.

    Quantised tensors are dequantised by the package `gguf`. All of them are held in memory.

    Raises:
        InputError: The file does not exist, is no GGUF file, is truncated or damaged, names something twice, or holds a
            kind of tensor that cannot be dequantised.
    """
    path = Path(path)
    data = memoryview(read_bytes(path))
    try:
        return GgufFile(path, *_read(data))
    except (_Damaged, UnicodeDecodeError, RecursionError) as error:
        cause = error if isinstance(error, _Damaged) else "a text in it cannot be read"
        raise InputError(f"{path} cannot be read as GGUF ({cause}): fetch the file again.") from error


def _read(data: memoryview) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    cursor = _Cursor(data)
    if bytes(cursor.take(4)) != _MAGIC:
        raise _Damaged("it does not begin with the letters GGUF")
    if (version := cursor.number("I")) not in _VERSIONS:
        raise _Damaged(f"it has the version {version}, and 2 and 3 can be read")
    tensor_count, field_count = cursor.numbers("Q", 2)
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        _add(fields, cursor.text(), cursor.value(cursor.number("I")))
    places: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("I")
        _add(places, name, (cursor.numbers("Q", dimensions)[::-1], cursor.number("I"), cursor.number("Q")))
    alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"its alignment is {alignment!r}")
    body = data[cursor.place + -cursor.place % alignment :]
    return fields, {name: _tensor(body, name, *place) for name, place in places.items()}


def _add(mapping: dict[str, Any], name: str, value: Any) -> None:
    if name in mapping:
        raise _Damaged(f"it holds {name!r} twice")
    mapping[name] = value


def _tensor(body: memoryview, name: str, shape: tuple[int, ...], kind: int, offset: int) -> np.ndarray:
    """Return the tensor whose bytes begin at `offset`, in an array of its own."""
    try:
        form = GGMLQuantizationType(kind)
    except ValueError as error:
        raise _Damaged(f"{name!r} is of the unknown type {kind}") from error
    block, size = GGML_QUANT_SIZES[form]
    if 0 in shape or not shape or shape[-1] % block:
        raise _Damaged(f"{name!r} has the shape {shape}")
    row = shape[-1] // block * size
    end = offset + math.prod(shape[:-1]) * row
    if end > len(body):
        raise _Damaged(f"{name!r} reaches beyond its end")
    rows = np.frombuffer(body[offset:end], np.uint8).reshape(*shape[:-1], row)
    try:
        return np.array(dequantize(rows, form), np.float32)
    except NotImplementedError as error:
        raise _Damaged(f"{name!r} is of the type {form.name}, which cannot be dequantised") from error
