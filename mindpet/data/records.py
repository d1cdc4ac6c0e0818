"""Files of records, one example each: JSON lines, CSV, and MindSpore's own MindRecord."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindpet.data.jsonl import read_objects
from mindpet.storage.reader import read_bytes, read_text, require_file
from mindpet.utils.exceptions import InputError

__all__ = ["find_splits", "read_records"]

_SPLITS = ("train", "valid", "test")


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) for each record of a file, the place being the one to name in an error message.

    A file ending in .csv has the names of its columns in the first line. One ending in .mindrecord (or .mindrecord0 and
    so on, the first of several parts) is read by MindSpore. Any other has one JSON object a line.

    Raises:
        InputError: The file cannot be read, has no records, or a record is damaged (file and line are named).
    """
    path = require_file(path)
    empty = True
    for place, record in _reader_of(path)(path):
        empty = False
        yield place, record
    if empty:
        raise InputError(f"{path} holds no records; write one example a line.")


def find_splits(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by split: train and test, and valid where there is one.

    Each is called by its split with the ending .jsonl, .csv or .mindrecord.

    Raises:
        InputError: A split has no file, or several.
    """
    found = {}
    for split in _SPLITS:
        files = [
            path
            for path in sorted(folder.glob(f"{split}.*"))
            if path.suffix in (".jsonl", ".csv", ".mindrecord", ".mindrecord0")
        ]
        if len(files) > 1:
            raise InputError(f"{folder} holds {files[0].name} and {files[1].name}; leave one file for each split.")
        if files:
            found[split] = files[0]
    if missing := [split for split in ("train", "test") if split not in found]:
        raise InputError(
            f"{folder} holds no {missing[0]} file; expected are train, test and, if you like, valid, each ending in "
            ".jsonl, .csv or .mindrecord."
        )
    return found


def _reader_of(path: Path) -> Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]:
    if path.suffix == ".csv":
        return _read_csv
    if path.suffix.startswith(".mindrecord"):
        return _read_mindrecord
    return read_objects


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = _read_exactly(path)
    usual = csv.field_size_limit(max(len(text), csv.field_size_limit()))  # of all readers of a process
    try:
        yield from list(_rows_of_csv(path, text))
    finally:
        csv.field_size_limit(usual)


def _rows_of_csv(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    line = 1
    try:
        for row in rows:
            place, line = f"{path}, line {line}", rows.line_num + 1
            if not row:
                continue
            if columns is None:
                columns = row
                if len(set(columns)) < len(columns):
                    raise InputError(f"{place}: a column's name stands there twice; give each column its own.")
                continue
            if len(row) != len(columns):
                raise InputError(
                    f"{place}: {len(row)} values for {len(columns)} columns; put a value with a comma or a line break "
                    "in double quotes."
                )
            yield place, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: this is not CSV ({error}); correct the line.") from error


def _read_exactly(path: Path) -> str:
    """Return the text of a file with its line ends as they are: within quotes they belong to the value."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        return read_text(path)  # names the line that is no UTF-8


def _read_mindrecord(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from mindspore.mindrecord import FileReader

    try:
        reader = FileReader(str(path))
        for number, record in enumerate(reader.get_next(), start=1):
            yield f"{path}, record {number}", record
        reader.close()
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        cause = next((line for line in map(str.strip, str(error).splitlines()) if line), type(error).__name__)
        raise InputError(
            f"{path} cannot be read as MindRecord ({cause}); keep its .db file beside it, or write it again."
        ) from error
