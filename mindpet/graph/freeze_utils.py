"""Freezing parameters by pattern and by method, always before the optimizer is made: it takes what can train then."""

import fnmatch
import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mindspore import Parameter, nn

from mindpet.graph.parameters import LabelledParameter, labelled_parameters
from mindpet.storage.reader import read_yaml
from mindpet.utils.exceptions import InputError, ModelConfigFreezeInfoError, ReadYamlFileError
from mindpet.utils.nearest import nearest_names

__all__ = [
    "FreezeWarning",
    "ParameterCount",
    "count_parameters",
    "freeze_delta",
    "freeze_from_config",
    "freeze_modules",
]

_METHOD_OF_MODE = {
    "lora": "lora",
    "prefix": "prefixtuning",
    "prefixtuning": "prefixtuning",
    "adapter": "adapter",
    "low_rank_adapter": "low_rank_adapter",
    "ptuning2": "ptuning2",
    "ia3": "ia3",
    "vera": "vera",
    "tokens": "tokens",
}
_MODES = (*_METHOD_OF_MODE, "bitfit")

_Change = tuple[Parameter, bool]


class FreezeWarning(UserWarning):
    """A call to freeze did less than it reads: a pattern matched nothing, or no parameter of the method can train."""


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers a network holds, each shared parameter counted once.

    Attributes:
        trainable: Numbers in parameters with `requires_grad`.
        frozen: Numbers in the others.
    """

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """All numbers."""
        return self.trainable + self.frozen

    @property
    def ratio(self) -> float:
        """The trainable share, from 0 to 1 (0 for a network without parameters)."""
        return self.trainable / self.total if self.total else 0.0


def freeze_modules(model: nn.Cell, include: list[str] | None = None, exclude: list[str] | None = None) -> None:
    """Freeze the parameters that `include` matches and make trainable those that `exclude` matches.

    A pattern matches a parameter by its path through the cells, as `model.parameters_and_names()` gives it, or by its
    name; the two differ after a cell was swapped in. `*` stands for any text, `?` for one character, `[abc]` for one of
    them; without these the match is exact. Upper and lower case differ. A parameter that both lists match, or neither,
    is left as it is. A pattern that matches nothing gives a `FreezeWarning`.

    Args:
        model: The network.
        include: Patterns of parameters whose `requires_grad` becomes False.
        exclude: Patterns of parameters whose `requires_grad` becomes True.

    Raises:
        TypeError: `model` is no Cell; a given list is no list, is empty or holds something that is no string.
        ValueError: Both lists are None.
    """
    _check_model(model)
    _check_patterns(include, exclude)
    if include is None and exclude is None:
        raise ValueError("include and exclude are both None; give at least one list of patterns.")
    _apply(_match_lists(labelled_parameters(model), include, exclude))


def freeze_delta(model: nn.Cell, mode: str, include: list[str] | None = None, exclude: list[str] | None = None) -> None:
    """Freeze everything but the parameters of one method, then apply the two lists as `freeze_modules` does.

    The method's own parameters are left as they are. They are known by `mindpet_delta_<method>` in their path or name
    (`tk_delta_<method>` in old files); for BitFit they are those that end in `bias`. If none of them can train, which
    happens when the network is frozen before the method is attached, a `FreezeWarning` says so.

    Args:
        model: The network.
        mode: 'lora', 'prefix' (or 'prefixtuning'), 'adapter', 'low_rank_adapter', 'ptuning2', 'ia3', 'vera', 'tokens'
            or 'bitfit', in any case.
        include: Patterns of further parameters to freeze.
        exclude: Patterns of parameters to keep trainable, for example ['*head*'].

    Raises:
        TypeError: `model` is no Cell; a given list is no list, is empty or holds something that is no string (1.x
            raised an UnexpectedError around it).
        ValueError: `mode` is no string or no known mode.
    """
    _check_model(model)
    mode = _check_mode(mode)
    _check_patterns(include, exclude)
    belongs = _membership(mode)
    labelled = labelled_parameters(model)
    own = [item.parameter for item in labelled if any(map(belongs, item.labels))]
    others = [(item.parameter, False) for item in labelled if not any(map(belongs, item.labels))]
    changes = others + _match_lists(labelled, include, exclude)
    if not any(parameter.requires_grad for parameter in own):
        _warn_untrained(mode, exists=bool(own))
    _apply(changes)


def freeze_from_config(model: nn.Cell, config_path: str) -> None:
    """Freeze as a YAML file says: a mapping `freeze` with the lists `include`, `exclude` or both of `freeze_modules`.

    Args:
        model: The network.
        config_path: The YAML file. Keys beside `freeze` are ignored.

    Raises:
        TypeError: `model` is no Cell; `config_path` is no string; a list is as `freeze_modules` refuses it.
        ValueError: `config_path` is empty; both lists are null.
        ReadYamlFileError: There is no such file, it is a symbolic link, or it cannot be read as YAML.
        ModelConfigFreezeInfoError: The file is empty or has no mapping `freeze`, or the mapping holds other keys or
            neither list.
    """
    _check_model(model)
    freeze_modules(model, **_read_lists(config_path))


def count_parameters(net: nn.Cell) -> ParameterCount:
    """Count the trainable and the frozen numbers of a network; what attaching keeps as state is not counted.

    Raises:
        TypeError: `net` is no Cell.
    """
    _check_model(net)
    counts = {True: 0, False: 0}
    for parameter in (item.parameter for item in labelled_parameters(net)):
        counts[parameter.requires_grad] += math.prod(parameter.shape)
    return ParameterCount(trainable=counts[True], frozen=counts[False])


def _check_model(model: nn.Cell) -> None:
    if not isinstance(model, nn.Cell):
        raise TypeError(f"The network is a {type(model).__name__}; give a mindspore.nn.Cell.")


def _check_patterns(include: list[str] | None, exclude: list[str] | None) -> None:
    for name, patterns in (("include", include), ("exclude", exclude)):
        if patterns is None:
            continue
        if not isinstance(patterns, list) or not patterns or not all(isinstance(item, str) for item in patterns):
            raise TypeError(f"{name} is {patterns!r}; give a list of at least one string, or None.")


def _check_mode(mode: str) -> str:
    if not isinstance(mode, str):
        raise ValueError(f"mode is {mode!r}; give one of {', '.join(_MODES)}.")
    lowered = str.lower(mode)
    if lowered not in _MODES:
        raise ValueError(f"mode is {str.__str__(mode)!r}; give one of {', '.join(_MODES)}.")
    return lowered


def _membership(mode: str) -> Callable[[str], bool]:
    """Return the test that tells from a path or name whether a parameter belongs to the method of `mode`."""
    if mode == "bitfit":
        return lambda label: label.endswith("bias")
    part = re.compile(rf"(?:mindpet|tk)_delta_{_METHOD_OF_MODE[mode]}(?![a-z0-9])")
    return lambda label: part.search(label) is not None


def _match_lists(
    labelled: list[LabelledParameter], include: list[str] | None, exclude: list[str] | None
) -> list[_Change]:
    to_freeze = _match(labelled, include or [])
    to_train = _match(labelled, exclude or [])
    return [
        (item.parameter, id(item.parameter) in to_train)
        for item in labelled
        if (id(item.parameter) in to_train) != (id(item.parameter) in to_freeze)
    ]


def _match(labelled: list[LabelledParameter], patterns: list[str]) -> set[int]:
    """Return the ids of the parameters that any of the patterns matches; report a pattern that matches none."""
    matched: set[int] = set()
    for pattern in patterns:
        matches = re.compile(fnmatch.translate(pattern)).match
        found = {id(item.parameter) for item in labelled if any(map(matches, item.labels))}
        if not found:
            _warn_unmatched(pattern, (label for item in labelled for label in item.labels))
        matched |= found
    return matched


def _apply(changes: Iterable[_Change]) -> None:
    for parameter, trainable in changes:
        parameter.requires_grad = trainable


def _warn_unmatched(pattern: str, labels: Iterable[str]) -> None:
    """Name the parts of paths that look most like the longest literal piece of the pattern."""
    piece = max((piece.strip(".") for piece in pattern.split("*")), key=len)
    length = piece.count(".") + 1
    parts = {
        ".".join(names[start : start + length])
        for names in (label.split(".") for label in labels)
        for start in range(len(names) - length + 1)
    }
    nearest = ", ".join(nearest_names(piece, sorted(parts))) if piece else ""
    advice = f"; the nearest names are {nearest}" if nearest else ""
    message = f"The pattern {pattern!r} matches no parameter of the network{advice}."
    warnings.warn(message, FreezeWarning, stacklevel=5)


def _warn_untrained(mode: str, exists: bool) -> None:
    if exists:
        cause = "all of this method's parameters were frozen before; make them trainable with exclude"
    elif mode == "bitfit":
        cause = "the network has no parameter that ends in bias"
    else:
        cause = f"the network has no parameter mindpet_delta_{_METHOD_OF_MODE[mode]}_*; attach the method, then freeze"
    message = f"freeze_delta with mode {mode!r} leaves nothing of the method to train: {cause}."
    warnings.warn(message, FreezeWarning, stacklevel=3)


def _read_lists(config_path: str) -> dict[str, list[str] | None]:
    if not isinstance(config_path, str):
        raise TypeError(f"config_path is a {type(config_path).__name__}; give the path of a YAML file as a string.")
    if not config_path:
        raise ValueError("config_path is empty; give the path of a YAML file.")
    if Path(config_path).is_symlink():
        raise ReadYamlFileError(f"{config_path} is a symbolic link; give the path of the file itself.")
    try:
        content = read_yaml(config_path)
    except InputError as error:
        raise ReadYamlFileError(str(error)) from error
    lists = content.get("freeze") if isinstance(content, dict) else None
    if not isinstance(lists, dict) or not lists or set(lists) - {"include", "exclude"}:
        raise ModelConfigFreezeInfoError(
            f"{config_path} holds {_shorten(content)}; give a mapping 'freeze' with the lists 'include', 'exclude' or"
            " both, and nothing else under it."
        )
    return lists


def _shorten(content: object) -> str:
    text = "nothing" if content is None else repr(content)
    return text if len(text) <= 80 else text[:77] + "..."
