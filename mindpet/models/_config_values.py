"""Reading a `config.json` and checking its values, for every architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mindpet.models._layers import ACTIVATIONS
from mindpet.storage.reader import read_json
from mindpet.utils.exceptions import InputError

__all__ = [
    "ACTIVATION",
    "CONFIG_FILE",
    "DROPOUT",
    "EPSILON",
    "FLAG",
    "LIST",
    "NOT_NEGATIVE",
    "OPTIONAL_DROPOUT",
    "OPTIONAL_SIZE",
    "POSITIVE",
    "SHARE",
    "SIZE",
    "TOKENS",
    "Rule",
    "Tokens",
    "as_tuple",
    "check_fields",
    "check_multiple",
    "check_values",
    "is_number",
    "is_size",
    "read_config",
    "read_config_values",
    "read_end_tokens",
    "refuse_features",
]

T = TypeVar("T")
Tokens = int | tuple[int, ...] | None


class Rule(NamedTuple):
    """What makes a value valid, how to say it, and what to do about one that is not."""

    is_valid: Callable[[Any], bool]
    expected: str
    advice: str = "correct the value"


CONFIG_FILE = "config.json"
_GENERATION_FILE = "generation_config.json"


def is_size(value: Any) -> bool:
    """Tell whether a value is a positive integer."""
    return type(value) is int and value > 0


def is_number(value: Any) -> bool:
    """Tell whether a value is a number."""
    return type(value) in (int, float)


def _is_dropout(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_tokens(value: Any) -> bool:
    return value is None or _is_token(value) or (isinstance(value, tuple) and all(map(_is_token, value)))


SIZE = Rule(is_size, "a positive integer")
OPTIONAL_SIZE = Rule(lambda value: value is None or is_size(value), "null or a positive integer")
DROPOUT = Rule(_is_dropout, "a number from 0 to below 1")
OPTIONAL_DROPOUT = Rule(lambda value: value is None or _is_dropout(value), "null or a number from 0 to below 1")
NOT_NEGATIVE = Rule(lambda value: is_number(value) and 0 <= value < math.inf, "a number from 0")
SHARE = Rule(lambda value: is_number(value) and 0 < value <= 1, "a number above 0 and up to 1")
POSITIVE = Rule(lambda value: is_number(value) and 0 < value < math.inf, "a positive number")
EPSILON = Rule(lambda value: is_number(value) and 0 < value < 1, "a number between 0 and 1")
ACTIVATION = Rule(
    lambda value: value in tuple(ACTIVATIONS),
    f"one of those that are built here, {', '.join(ACTIVATIONS)}",
    "use a model with one of them",
)
FLAG = Rule(lambda value: type(value) is bool, "true or false")
LIST = Rule(lambda value: value is None or isinstance(value, list), "null or a list")
TOKENS = Rule(_are_tokens, "null, the number of a token or a list of them")


def check_fields(config: Any, rules: Sequence[tuple[Sequence[str], Rule]]) -> None:
    """Raise InputError for the first field of a configuration that its rule does not accept."""
    check_values(vars(config), rules)


def check_values(values: Mapping[str, Any], rules: Sequence[tuple[Sequence[str], Rule]]) -> None:
    """Raise InputError for the first value, by its name, that its rule does not accept."""
    for names, rule in rules:
        for name in names:
            if not rule.is_valid(values[name]):
                raise InputError(f"{name} is {values[name]!r}; expected is {rule.expected}: {rule.advice}.")


def check_multiple(config: Any, name: str, divisor: str) -> None:
    """Raise InputError where one field of a configuration is no multiple of another one."""
    if getattr(config, name) % getattr(config, divisor):
        raise InputError(
            f"{name} is {getattr(config, name)}; expected is a multiple of {divisor} ({getattr(config, divisor)}): "
            "correct one of the two."
        )


def refuse_features(values: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Raise InputError where a key of a `config.json` asks for numbers that are not computed here.

    Args:
        values: The parsed file.
        supported: The keys that change the numbers, with the one value of each that is computed; a missing key and
            null ask for nothing.
    """
    for key, value in supported.items():
        if values.get(key) not in (None, value):
            raise InputError(
                f"{key} is {values[key]!r}; only {value!r} is supported: use a model without this feature."
            )


def read_config_values(folder: str | Path) -> dict[str, Any]:
    """Return what `config.json` of a model folder holds.

    Raises:
        InputError: The file is missing or no JSON object; the message names it.
    """
    path = Path(folder) / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, expected is a JSON object: fetch the file again.")
    return values


def read_config(folder: str | Path, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """Return what `parse` makes of the `config.json` of a model folder.

    Raises:
        InputError: As `read_config_values` and `parse`; the message names the file.
    """
    values = read_config_values(folder)
    try:
        return parse(values)
    except InputError as error:
        raise InputError(f"{Path(folder) / CONFIG_FILE}: {error}") from error


def as_tuple(value: Any) -> Any:
    """Return a list of a JSON file as a tuple, which a frozen configuration can hold, and anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def read_end_tokens(folder: str | Path, default: Tokens) -> Tokens:
    """Return `eos_token_id` of the `generation_config.json` in a model folder; a chat model may end at more tokens.

    Args:
        folder: The model's folder.
        default: What holds where the file does not exist or does not say.

    Raises:
        InputError: The file is damaged; the message names it.
    """
    path = Path(folder) / _GENERATION_FILE
    values = read_json(path) if path.exists() else {}
    tokens = as_tuple(values.get("eos_token_id")) if isinstance(values, dict) else values
    if not _are_tokens(tokens):
        raise InputError(f"{path}: eos_token_id is {tokens!r}; expected is {TOKENS.expected}: correct the value.")
    return default if tokens is None else tokens
