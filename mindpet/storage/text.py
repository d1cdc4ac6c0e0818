"""Reading text, JSON, JSON lines and YAML strictly."""

import json
import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from mindpet.utils.exceptions import InputError

__all__ = [
    "is_folder",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_text",
    "read_yaml",
    "require_file",
    "require_folder",
]


def require_file(path: str | Path) -> Path:
    """Return `path` as a Path if it is an existing regular file.

    Raises:
        InputError: There is nothing under this path, or something that is no file.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        found = "is not a file" if path.exists() else "does not exist"
    except OSError as error:
        raise InputError(_cannot_read(path, error)) from error
    raise InputError(f"{path} {found}; name an existing file.")


def is_folder(path: str | Path) -> bool:
    """Tell whether a path is an existing folder. One that cannot be reached is none: reading it as a file says why."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def require_folder(path: str | Path) -> Path:
    """Return `path` as a Path if it is an existing folder whose names can be listed.

    Raises:
        InputError: There is nothing under this path, something that is no folder, or a folder that may not be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            next(path.iterdir(), None)
            return path
    except OSError as error:
        raise InputError(_cannot_read(path, error)) from error
    raise InputError(f"{path} is not an existing folder; name one.")


def read_bytes(path: str | Path) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: The file does not exist or cannot be read.
    """
    path = require_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(_cannot_read(path, error)) from error


def read_text(path: str | Path, fallback_encoding: str | None = None) -> str:
    r"""Return the text of a UTF-8 file, without a byte order mark and with line ends as `\n`.

    Args:
        path: The file to read.
        fallback_encoding: How to read a file that is not UTF-8, for example 'latin-1'; None refuses it.

    Raises:
        InputError: The file does not exist, cannot be read, or is not UTF-8 (the message names the line).
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback_encoding is None:
            line = data.count(b"\n", 0, error.start) + 1
            raise InputError(
                f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8 text; save the file as UTF-8."
            ) from error
        text = data.decode(fallback_encoding)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: The file cannot be read, is not JSON (the message names the line), or repeats a key in an object.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}, line {error.lineno}: this is not JSON ({error.msg}); correct the line or fetch the file again."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not usable JSON ({error}); correct it or fetch the file again.") from error


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) for each line of a file that holds one JSON value a line; skip blank lines.

    Raises:
        InputError: The file cannot be read, or a line is not JSON or repeats a key in an object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            cause = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise InputError(
                f"{path}, line {number}: this is not JSON ({cause}); write one JSON object a line."
            ) from error
        yield number, value


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text.

    Raises:
        ValueError: The text is not JSON (then it is a JSONDecodeError), or an object repeats a key.
        RecursionError: The values are nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object_without_repeats)


def read_yaml(path: str | Path) -> Any:
    """Return the value of a YAML file that holds plain data: mappings, lists, texts, numbers, dates, true, false, null.

    Numbers such as 5e-4 are numbers, as in YAML 1.2 (in YAML 1.1 they would need a point: 5.0e-4).

    Raises:
        InputError: The file cannot be read, is not YAML, repeats a key in a mapping, or asks for a Python object. The
            message names the line.
    """
    text = read_text(path)
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise InputError(
            f"{place}: this is not plain YAML ({error.problem or error.context}); correct the line."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise InputError(f"{path} is not plain YAML ({cause}); correct the file.") from error


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses a repeated key, which YAML forbids and PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value!r} stands here a second time", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice in one object")
    return value


def _cannot_read(path: Path, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror or error}); name a path that you may read."
