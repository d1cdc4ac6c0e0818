"""Which kernels compute: the plain ones, or native ones with products in float32 or bfloat16.

The environment variable MINDPET_KERNELS (off, f32, bf16) is read once, at import; `use_kernels` chooses afterwards.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import lru_cache
from pathlib import Path

import mindspore
from mindspore.ops import constexpr

from mindpet.utils.environment import usable_cores
from mindpet.utils.exceptions import InputError

__all__ = [
    "KINDS",
    "LIBRARY",
    "describe_kernels",
    "kernels_in_use",
    "library",
    "missing",
    "native_kind",
    "on_stand_alone_cpu",
    "possible_kernels",
    "use_kernels",
]

KINDS = ("off", "f32", "bf16")
LIBRARY = Path(__file__).with_name("libmindpet_kernels.so")

_INTERFACE = 7  # of the library's functions, as in entry.cpp
_INSTRUCTION_SETS = {1: "AVX2", 2: "AVX-512", 3: "AVX-512 with bfloat16"}
_VARIABLE = "MINDPET_KERNELS"


def use_kernels(kind: str) -> None:
    """Choose the kernels of everything that is compiled, or in PyNative mode computed, from now on.

    A graph that is compiled already keeps its kernels. Native kernels serve float32 tensors on a stand-alone CPU; all
    else is computed by the plain ones whatever is chosen.

    Args:
        kind: 'off' for plain kernels, 'f32' for native ones, 'bf16' for native ones whose products with frozen weights
            round to bfloat16 (relative errors of 1e-2 at most, twice as fast).

    Raises:
        InputError: An unknown kind, or one that is not possible here; the message says why.
    """
    global _chosen
    _chosen = _checked(kind, "kind")


def kernels_in_use() -> str:
    """Return 'off', 'f32' or 'bf16': what float32 tensors get on this device in this parallel mode."""
    return _chosen if on_stand_alone_cpu() else "off"


def on_stand_alone_cpu() -> bool:
    """Return whether MindSpore's device is a CPU, and no parallel mode shares the work."""
    alone = mindspore.get_auto_parallel_context("parallel_mode") == "stand_alone"
    return alone and mindspore.get_context("device_target") == "CPU"


def possible_kernels() -> tuple[str, ...]:
    """Return what `use_kernels` takes here: 'off', and what the processor and the installation allow beside it."""
    return tuple(kind for kind in KINDS if not _obstacle(kind))


def describe_kernels() -> str:
    """Return one line that says which kernels are in use, and why no others."""
    kind = kernels_in_use()
    if kind == "off":
        chosen = "chosen" if _chosen == "off" else "native ones serve a stand-alone CPU"
        return f"plain ({missing() or chosen})"
    products = "float32" if kind == "f32" else "bfloat16 products"
    library, level = _load()
    return f"native, {products}, {_INSTRUCTION_SETS[level]}, {library.mindpet_threads()} threads"


@constexpr(reuse_result=False)
def native_kind(dtype: mindspore.Type) -> str:
    """Return the kernels in use for tensors of a dtype, as a constant of the graph that is being compiled."""
    return kernels_in_use() if dtype == mindspore.float32 else "off"


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Return why there are no native kernels here, or None where there are."""
    if mindspore.get_context("device_target") != "CPU":
        return "MindSpore's device is no CPU"
    allowed = os.environ.get("MS_CUSTOM_AOT_WHITE_LIST")
    if allowed is not None and not LIBRARY.resolve().is_relative_to(Path(allowed).resolve()):
        return f"MS_CUSTOM_AOT_WHITE_LIST allows only {allowed}"
    if not LIBRARY.exists():
        return "this installation has no native library: install mindpet again where g++ is at hand"
    try:
        library, level = _load()
    except (OSError, AttributeError) as error:
        return f"the native library cannot be loaded: {error}"
    if library.mindpet_interface() != _INTERFACE:
        return "the native library is another version's: install mindpet again"
    return None if level else "this processor has no AVX2"


def library() -> ctypes.CDLL:
    """Return the native library, where `missing` finds nothing wrong with it."""
    return _load()[0]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL, int]:
    """Return the library and the level of instructions that it uses on this processor."""
    library = ctypes.CDLL(str(LIBRARY))
    library.mindpet_set_threads(_threads())
    return library, library.mindpet_level()


def _threads() -> int:
    """Return the number of cores, or OMP_NUM_THREADS where it is smaller.

    It is read here because MindSpore sets it for C code, to 1, in every process.
    """
    limit = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))  # "4", or "4,2" for nested regions
    return min(usable_cores(), int(limit[0]) or 1) if limit else usable_cores()


def _checked(kind: str, name: str) -> str:
    """Return a kind that is possible here."""
    if kind not in KINDS:
        raise InputError(f"{name} is {kind!r}; accepted are {', '.join(KINDS)}: choose one of them.")
    if reason := _obstacle(kind):
        possible = " and ".join(map(repr, possible_kernels()))
        raise InputError(f"{name} is {kind!r}, but {reason}; possible here: {possible}.")
    return kind


def _obstacle(kind: str) -> str | None:
    """Return why a kind is not possible here, or None where it is."""
    if kind == "off":
        return None
    reason = missing()
    if reason is None and kind == "bf16" and _load()[1] < 3:
        return "this processor has no AVX512-BF16"
    return reason


def _initial() -> str:
    kind = os.environ.get(_VARIABLE)
    if kind is None:
        return "off" if missing() else "f32"
    return _checked(kind, _VARIABLE)


_chosen = _initial()
