"""Finding the cells that a configuration names; an entry that finds none is an error with the nearest names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["ALL_LINEAR", "TargetMatch", "match_keys", "match_targets"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class TargetMatch:
    """What one entry of a configuration has matched.

    Attributes:
        method: The method's name.
        field: The configuration's field.
        entry: The entry as it was given, or as the architecture's default has it.
        paths: The paths of the matched cells, in the network's order.
    """

    method: str
    field: str
    entry: str
    paths: tuple[str, ...]


def match_targets(
    method: str, field: str, targets: str | Sequence[str], paths: Sequence[str], kind: str
) -> list[TargetMatch]:
    """Match each entry of `targets`, written as `PeftConfig` says, against the paths that are candidates.

    Args:
        method: The method's name, for the result.
        field: The configuration's field.
        targets: One string, or a list of entries. 'all-linear' is not known here.
        paths: The candidates.
        kind: What they are, for the message: 'dense layer'.

    Raises:
        InputError: An entry matches no candidate, or a string is no regular expression.
    """
    if isinstance(targets, str):
        return [_match(method, field, targets, _test_of_string(field, targets), paths, kind)]
    return [_match(method, field, entry, _test_of_entry(entry), paths, kind) for entry in targets]


def match_keys(method: str, field: str, patterns: Mapping[str, object], paths: Sequence[str]) -> list[TargetMatch]:
    """Match the keys of `rank_pattern` or `alpha_pattern` against the adapted layers, as PEFT does.

    A key is a regular expression for a path or for its end after a dot.

    Raises:
        InputError: A key matches no adapted layer, or is no regular expression.
    """
    return [
        _match(method, field, key, _compile(field, key, rf"(?:.*\.)?(?:{key})"), paths, "adapted layer")
        for key in patterns
    ]


def _match(
    method: str, field: str, entry: str, fits: Callable[[str], object], paths: Sequence[str], kind: str
) -> TargetMatch:
    found = tuple(path for path in paths if fits(path))
    if not found:
        nearest = nearest_names(entry, _names(paths))
        hint = f"the nearest names are {', '.join(nearest)}" if nearest else f"give the name of a {kind}"
        raise InputError(f"{field}: {entry!r} matches no {kind} of the network; {hint}")
    return TargetMatch(method, field, entry, found)


def _test_of_string(field: str, text: str) -> Callable[[str], object]:
    return _test_of_entry(text) if re.fullmatch(r"[\w.]+", text) else _compile(field, text, text)


def _test_of_entry(entry: str) -> Callable[[str], bool]:
    if re.search(r"[*?\[]", entry):
        matches = re.compile(fnmatch.translate(entry)).match
        return lambda path: any(matches(end) for end in _ends(path))
    return lambda path: path == entry or path.endswith(f".{entry}")


def _compile(field: str, entry: str, pattern: str) -> Callable[[str], object]:
    try:
        return re.compile(pattern).fullmatch
    except re.error as error:
        raise InputError(f"{field}: {entry!r} is no regular expression: {error}; correct it") from error


def _ends(path: str) -> Iterable[str]:
    """Yield the path and each end of it after a dot."""
    parts = path.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _names(paths: Sequence[str]) -> dict[str, None]:
    """Return what a user may have meant: names, ends of paths and paths, each once."""
    return {end: None for path in paths for end in reversed(list(_ends(path)))}
