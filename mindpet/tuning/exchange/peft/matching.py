"""How PEFT finds the layers that a configuration names, and names for layers that it finds again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mindpet.tuning.exchange.peft.frame import Source

__all__ = ["as_pattern", "find_adapted", "find_saved", "name_layers", "pin"]

Named = str | Sequence[str]

_ALL_LINEAR = "all-linear"
_HEADS = ("classifier", "score", "qa_outputs", "lm_head")  # which 'all-linear' leaves out
_HEADS_OF_TASKS = (
    "classifier",
    "score",
    "qa_outputs",
)  # which PEFT adds to modules_to_save, whether there is one or not
_NUMBERED = r".*?\.[^.]*\.(?P<number>\d+)\."  # the first number in a path is the layer's


def find_adapted(source: Source, candidates: Sequence[str]) -> list[str]:
    """Return the paths of the layers that PEFT would adapt in this network.

    Raises:
        InputError: The configuration does not say it, or not in a form that PEFT has.
    """
    targets = source.names_or_pattern("target_modules")
    if not targets:
        source.refuse("target_modules names nothing", "name what was adapted")
    is_named = _is_linear(source) if targets == _ALL_LINEAR else _is_target(source, targets)
    excluded = source.names_or_pattern("exclude_modules")
    saved = source.names("modules_to_save")
    return [
        path
        for path in candidates
        if is_named(path)
        and not (excluded and _matches(excluded, path))
        and not any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in saved)
    ]


def find_saved(source: Source) -> list[str]:
    """Return the paths of the cells that PEFT would train and save whole.

    Raises:
        InputError: The configuration names one that the network has not.
    """
    found: list[str] = []
    for name in source.names("modules_to_save"):
        paths = [path for path in source.network.cells if path.endswith(name)]
        if not paths and name not in _HEADS_OF_TASKS:
            source.refuse(
                f"modules_to_save names {name!r}, which the network has not",
                "take it out, or load into another network",
            )
        found += [path for path in paths if path not in found]
    outer = [path for path in found if not any(path.startswith(f"{other}.") for other in found)]
    return [path for path in source.network.cells if path in outer]


def name_layers(entries: Iterable[str], paths: Sequence[str], candidates: Iterable[str]) -> Named:
    """Return names by which PEFT finds exactly these layers.

    Args:
        entries: Names that are taken if they do.
        paths: The layers.
        candidates: All cells of the network among which PEFT looks.
    """
    candidates, wanted = list(candidates), set(paths)
    for names in (list(dict.fromkeys(entries)), list(paths)):
        if names and {path for path in candidates if _matches(names, path)} == wanted:
            return names
    return as_pattern(paths)


def pin(paths: Sequence[str], candidates: Iterable[str]) -> str | tuple[str, ...]:
    """Return `target_modules` of ours that names exactly these layers.

    Args:
        paths: The layers.
        candidates: All among which it looks.
    """
    exact = {path for path in candidates if _matches(paths, path)} == set(paths)
    return tuple(paths) if exact else f"(?:{as_pattern(paths)})"


def as_pattern(paths: Iterable[str]) -> str:
    """Return a regular expression that fits exactly these paths."""
    return "|".join(map(re.escape, paths)) or "(?!)"


def _matches(named: Named, path: str) -> bool:
    if isinstance(named, str):
        return re.fullmatch(named, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in named)


def _is_linear(source: Source) -> Callable[[str], bool]:
    linear = {path for path in source.network.dense_paths if path.rpartition(".")[2] not in _HEADS}
    return linear.__contains__


def _is_target(source: Source, targets: Named) -> Callable[[str], bool]:
    """Return the rule of `target_modules` with that of `layers_to_transform`, which holds for ends of paths only."""
    numbers: Any = source.config.get("layers_to_transform")
    if numbers is None or numbers == [] or isinstance(targets, str):
        return lambda path: _matches(targets, path)
    numbers = [numbers] if isinstance(numbers, int) else numbers
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        source.refuse(f"layers_to_transform is {numbers!r}, and numbers of layers are accepted", "correct it")
    lists = source.names_or_pattern("layers_pattern")
    lists = (lists,) if isinstance(lists, str) else lists
    patterns = [rf"(?:^|.*?\.){name}\.(?P<number>\d+)\." for name in lists if name] or [_NUMBERED]

    def is_chosen(path: str) -> bool:
        match = next((match for pattern in patterns if (match := re.match(pattern, path))), None)
        return match is not None and int(match["number"]) in numbers

    return lambda path: path in targets or (_matches(targets, path) and is_chosen(path))
