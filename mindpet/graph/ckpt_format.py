"""Whether the bytes of each tensor in a .ckpt file fill its shape, which MindSpore does not check.

MindSpore copies whatever bytes a tensor has into the memory for its shape: more of them, as a damaged file may hold,
overwrite the memory of the process, and fewer leave the rest as it was.

A .ckpt file is a protocol buffer. It repeats field 1, an entry: its name is field 1, its tensor field 2. A tensor
repeats field 1, a length of its shape; its dtype is field 2, its bytes are field 3. Neighbouring entries of one name
hold parts of one tensor.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["find_misfit"]

_BYTES_OF_DTYPE = {
    **dict.fromkeys(("Bool", "Int8", "UInt8"), 1),
    **dict.fromkeys(("Int16", "UInt16", "Float16", "BFloat16"), 2),
    **dict.fromkeys(("Int32", "UInt32", "Float32"), 4),
    **dict.fromkeys(("Int64", "UInt64", "Float64"), 8),
}
_NUMBER, _BYTES = 0, 2  # kinds of fields
_FIXED_LENGTHS = {1: 8, 5: 4}  # of the other kinds
_LONGEST_NUMBER = 10
_CRC_MARK, _CRC_LENGTH = b"crc_num", 17


class _Entry(NamedTuple):
    name: bytes
    dtype: str
    shape: tuple[int, ...]
    size: int


def find_misfit(data: bytes) -> str | None:
    """Return the name of the first tensor that has more or fewer bytes than its shape asks for, or None.

    Args:
        data: The content of a .ckpt file that is not encrypted.

    Raises:
        ValueError: It is no protocol buffer.
    """
    if data[-_CRC_LENGTH:].startswith(_CRC_MARK):
        data = data[:-_CRC_LENGTH]
    fields = _fields(memoryview(data))
    entries = [_read_entry(part) for number, part in fields if number == 1 and not isinstance(part, int)]
    size = 0
    for entry, following in zip(entries, [*entries[1:], None], strict=True):
        size += entry.size
        if following is not None and following.name == entry.name:
            continue
        expected = math.prod(entry.shape) * _BYTES_OF_DTYPE.get(entry.dtype, 0)
        if entry.dtype in _BYTES_OF_DTYPE and size != expected:
            return entry.name.decode(errors="replace")
        size = 0
    return None


def _read_entry(message: memoryview) -> _Entry:
    name, dtype, shape, size = b"", "", [], 0
    for number, part in _fields(message):
        if number == 1 and not isinstance(part, int):
            name = bytes(part)
        elif number == 2 and not isinstance(part, int):
            for tensor_number, value in _fields(part):
                if tensor_number == 1 and isinstance(value, int):
                    shape.append(value)
                elif tensor_number == 2 and not isinstance(value, int):
                    dtype = bytes(value).decode(errors="replace")
                elif tensor_number == 3 and not isinstance(value, int):
                    size = len(value)
    return _Entry(name, dtype, () if shape == [0] else tuple(shape), size)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of the fields of a message."""
    place = 0
    while place < len(message):
        key, place = _read_number(message, place)
        kind = key & 7
        if kind == _NUMBER:
            value, place = _read_number(message, place)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, place = _read_number(message, place)
        elif kind in _FIXED_LENGTHS:
            length = _FIXED_LENGTHS[kind]
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place + length > len(message):
            raise ValueError("a field is cut off")
        yield key >> 3, message[place : place + length]
        place += length


def _read_number(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number that begins at `place`, seven bits a byte, and the place behind it."""
    number = 0
    for index, byte in enumerate(message[place : place + _LONGEST_NUMBER]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, place + index + 1
    raise ValueError("a number is cut off")
