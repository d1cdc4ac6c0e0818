"""The frequencies of rotary positions (arXiv:2104.09864), and how long-context models scale them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mindpet.models._config_values import POSITIVE, check_values
from mindpet.utils.exceptions import InputError

__all__ = ["Rope"]

_DEFAULT = "default"


@dataclass(frozen=True)
class Rope:
    """How the angles of a position come about.

    Args:
        theta: The base of the frequencies.
        kind: default, linear or llama3.
        factor: By how much the context is stretched, for linear and llama3.
        low_freq_factor: Of llama3: wavelengths above original_max_position_embeddings / low_freq_factor are stretched.
        high_freq_factor: Of llama3: those below original_max_position_embeddings / high_freq_factor are not.
        original_max_position_embeddings: Of llama3: the context before it was stretched.
    """

    theta: float = 10000.0
    kind: str = _DEFAULT
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: float = 8192

    @classmethod
    def from_values(cls, theta: Any, scaling: Any) -> Rope:
        """Read `rope_theta` and `rope_scaling` of a `config.json`.

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
        values: dict[str, Any] = {name: scaling.get(name) for name in _KINDS[kind][0]}
        check_values(values, ((_KINDS[kind][0], POSITIVE),))
        if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
            raise InputError("high_freq_factor of rope_scaling must be above low_freq_factor: correct the two values.")
        return cls(theta, kind, **values)

    def frequencies(self, width: int) -> np.ndarray:
        """Return the angle of each pair at position 1, float32 (pairs,), for `width` rotated elements of a head."""
        exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
        return _KINDS[self.kind][1](self, np.float32(1) / np.float32(self.theta) ** exponents)


def _unscaled(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    return frequencies


def _linear(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    """Stretch all positions (Chen et al., arXiv:2306.15595)."""
    return frequencies / np.float32(rope.factor)


def _llama3(rope: Rope, frequencies: np.ndarray) -> np.ndarray:
    """Stretch long wavelengths, leave short ones, and pass smoothly between them (Llama 3, arXiv:2407.21783)."""
    turns = rope.original_max_position_embeddings / (2 * math.pi / frequencies)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(share, 0, 1).astype(np.float32)
    return kept * frequencies + (1 - kept) * frequencies / np.float32(rope.factor)


# The kinds of scaling: what each reads, and what it does.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[Rope, np.ndarray], np.ndarray]]] = {
    _DEFAULT: ((), _unscaled),
    "linear": (("factor",), _linear),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        _llama3,
    ),
}
