"""The frequencies of rotary positions (arXiv:2104.09864), and how long-context models scale them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mindpet.models._config_values import FLAG, POSITIVE, check_values
from mindpet.utils.exceptions import InputError

__all__ = ["Rope"]

_DEFAULT = "default"
_ORIGINAL = "original_max_position_embeddings"
_MOST_TOKENS = 2**31 - 1  # positions are int32


@dataclass(frozen=True)
class Rope:
    """How the angles of a position come about.

    Args:
        theta: The base of the frequencies.
        kind: default, linear, llama3, yarn or dynamic.
        factor: By how much the context is stretched, for all but default.
        low_freq_factor: Of llama3: wavelengths above original_max_position_embeddings / low_freq_factor are stretched.
        high_freq_factor: Of llama3: those below original_max_position_embeddings / high_freq_factor are not.
        original_max_position_embeddings: Of llama3, yarn and dynamic: the context before it was stretched.
        beta_fast: Of yarn: pairs that turn more often than this in the original context are not stretched.
        beta_slow: Of yarn: those that turn less often than this are.
        truncate: Of yarn: whether the bounds that follow from the two are rounded outwards, to whole pairs.
        attention_factor: Of yarn: cosine and sine are multiplied by it.
    """

    theta: float = 10000.0
    kind: str = _DEFAULT
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    @classmethod
    def from_values(cls, theta: Any, scaling: Any, longest: int) -> Rope:
        """Read `rope_theta` and `rope_scaling` of a `config.json`.

        Args:
            theta: The first.
            scaling: The second.
            longest: Its `max_position_embeddings`: the context before it was stretched, where the second names none.

        Raises:
            InputError: A value out of range, or a scaling that is not built here.
        """
        check_values({"rope_theta": theta}, ((("rope_theta",), POSITIVE),))
        if scaling is None:
            return cls(theta)
        if not isinstance(scaling, Mapping):
            raise InputError(f"rope_scaling is {scaling!r}; expected is null or an object: correct the value.")
        kind = scaling.get("rope_type", scaling.get("type", _DEFAULT))
        if kind not in tuple(_KINDS):
            raise InputError(
                f"rope_scaling is of type {kind!r}; supported are {', '.join(_KINDS)}: use a model with one of them."
            )
        given = {name: value for name, value in scaling.items() if value is not None}
        return cls(theta, kind, **_KINDS[kind].read(given, longest))._checked()

    def frequencies(self, width: int) -> np.ndarray:
        """Return the angle of each pair at position 1, float32 (pairs,), for `width` rotated elements of a head."""
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        return _KINDS[self.kind].scale(self, np.float32(1) / np.float32(self.theta) ** exponents, width)

    def limit(self, longest: int) -> int:
        """Return how many tokens a text may have in a model with so many `max_position_embeddings`."""
        if self.kind == "dynamic":
            return int(min(longest, self.original_max_position_embeddings))
        if self.kind == "yarn":
            return int(max(longest, min(self.factor * self.original_max_position_embeddings, _MOST_TOKENS)))
        return longest

    def _checked(self) -> Rope:
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise InputError("high_freq_factor of rope_scaling must be above low_freq_factor: correct the two values.")
        if self.kind == "yarn" and self.theta <= 1:
            raise InputError(f"rope_theta is {self.theta!r}; yarn needs a number above 1: correct the value.")
        return self


class _Kind(NamedTuple):
    """A kind of scaling: what it reads of `rope_scaling`, as fields of a Rope, and what it makes of the frequencies."""

    read: Callable[[Mapping[str, Any], int], dict[str, Any]]
    scale: Callable[[Rope, np.ndarray, int], np.ndarray]


def _positive(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the values of these names, each a positive number."""
    taken = {name: values.get(name) for name in names}
    check_values(taken, ((names, POSITIVE),))
    return taken


def _unscaled(rope: Rope, frequencies: np.ndarray, width: int) -> np.ndarray:
    """Leave the positions as they are.

    Dynamic scaling (NTK) raises the base with the length of a text beyond the original context only, and with it the
    keys that a cache holds already. Texts are not longer here.
    """
    return frequencies


def _linear(rope: Rope, frequencies: np.ndarray, width: int) -> np.ndarray:
    """Stretch all positions (Chen et al., arXiv:2306.15595)."""
    return frequencies / np.float32(rope.factor)


def _llama3(rope: Rope, frequencies: np.ndarray, width: int) -> np.ndarray:
    """Stretch long wavelengths, leave short ones, and pass smoothly between them (Llama 3, arXiv:2407.21783)."""
    turns = rope.original_max_position_embeddings / (2 * math.pi / frequencies)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(share, 0, 1).astype(np.float32)
    return kept * frequencies + (1 - kept) * frequencies / np.float32(rope.factor)


def _yarn(rope: Rope, frequencies: np.ndarray, width: int) -> np.ndarray:
    """Stretch slow pairs, leave fast ones, and pass linearly between them, pair by pair (YaRN, arXiv:2309.00071)."""

    def pair_with(turns: float) -> float:
        """Return where among the pairs one turns so often in the original context."""
        wavelength = rope.original_max_position_embeddings / (2 * math.pi * turns)
        return width * math.log(wavelength) / (2 * math.log(rope.theta))

    first, last = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    numbers = np.arange(len(frequencies), dtype=np.float32)
    stretched = np.clip((numbers - np.float32(first)) / np.float32(last - first), 0, 1)
    return (1 - stretched) * frequencies + stretched * frequencies / np.float32(rope.factor)


def _read_yarn(given: Mapping[str, Any], longest: int) -> dict[str, Any]:
    given = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, _ORIGINAL: longest} | dict(given)
    values = _positive(given, "factor", "beta_fast", "beta_slow", _ORIGINAL)
    check_values(given, ((("truncate",), FLAG),))
    weights = {name for name in ("mscale", "mscale_all_dim") if given.get(name) not in (None, 0)}
    optional = _positive(given, *weights, *({"attention_factor"} & given.keys()))
    factor, sharp = values["factor"], optional.get("attention_factor")
    if sharp is None and {"mscale", "mscale_all_dim"} <= optional.keys():
        sharp = _sharpening(factor, optional["mscale"]) / _sharpening(factor, optional["mscale_all_dim"])
    elif sharp is None:
        sharp = _sharpening(factor, 1.0)
    return values | {"truncate": given["truncate"], "attention_factor": sharp}


def _sharpening(factor: float, weight: float) -> float:
    """Return by how much YaRN scales queries and keys, so that attention in a longer context is as sharp."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


_KINDS = {
    _DEFAULT: _Kind(lambda given, longest: {}, _unscaled),
    "linear": _Kind(lambda given, longest: _positive(given, "factor"), _linear),
    "llama3": _Kind(
        lambda given, longest: _positive(given, "factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), _llama3
    ),
    "yarn": _Kind(_read_yarn, _yarn),
    "dynamic": _Kind(
        lambda given, longest: _positive({_ORIGINAL: longest} | dict(given), "factor", _ORIGINAL), _unscaled
    ),
}
