"""What MindPet runs on: versions, machine and devices, and what of it is known not to work.

MindSpore is imported only when its devices are asked for, so that a broken installation can be described too.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from mindpet.utils.exceptions import InputError

__all__ = [
    "RANGES",
    "Finding",
    "choose_device",
    "describe_environment",
    "first_line",
    "read_environment",
    "usable_cores",
]


@dataclass(frozen=True)
class Range:
    """Versions that are known to work, as pyproject.toml has them, and what happens with others."""

    lowest: str
    below: str
    otherwise: str


RANGES = {
    "python": Range("3.10", "3.13", "MindSpore has no wheels for others"),
    "mindspore": Range("2.7.0", "2.11", "MindPet is not tested with others"),
    "numpy": Range("1.26", "2", "MindSpore is built against NumPy 1, and its first reshape fails with NumPy 2"),
    "scipy": Range("1.11", "1.16", "MindPet is not tested with others beside NumPy 1"),
}


@dataclass(frozen=True)
class Finding:
    """A part of the environment.

    Attributes:
        name: What it is, 'numpy' for example.
        found: Its version or value, or None where it is missing.
        accepted: The versions that are known to work, or None where nothing is known.
        problem: What is wrong and what to do, or None.
    """

    name: str
    found: str | None
    accepted: str | None = None
    problem: str | None = None


def read_environment() -> list[Finding]:
    """Return the versions of mindpet, python, mindspore, numpy and scipy, the usable devices and the machine."""
    packages = [_check(package, accepted) for package, accepted in RANGES.items()]
    machine = [Finding("processor", f"{_processor()}, {usable_cores()} cores"), Finding("system", platform.platform())]
    return [Finding("mindpet", _version("mindpet")), *packages, _find_devices(), *machine]


def describe_environment(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the date (UTC) and the findings in a form that JSON has: what was found by name, and the problems."""
    findings = list(findings)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": {finding.name: finding.found for finding in findings},
        "problems": {finding.name: finding.problem for finding in findings if finding.problem},
    }


def choose_device(device: str | None) -> str:
    """Let this process compute on a device, and return its name.

    Args:
        device: 'CPU' or 'Ascend'; None takes what MindSpore takes by itself.

    Raises:
        InputError: MindSpore cannot be imported, or the device is not there.
    """
    mindspore = _import_mindspore()
    present = mindspore.get_context("device_target")
    if device is None or device == present:
        return present
    try:
        mindspore.set_device(device)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"device: {device} cannot be used here ({first_line(error)})") from error
    return device


def first_line(error: Exception) -> str:
    """Return the first line of a message that says something; MindSpore's go on for pages."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def _check(package: str, accepted: Range) -> Finding:
    found = _version(package)
    specifier = f">={accepted.lowest},<{accepted.below}"
    if found and _numbers(accepted.lowest) <= _numbers(found) < _numbers(accepted.below):
        return Finding(package, found, specifier)
    remedy = "use such a Python" if package == "python" else f"pip install '{package}{specifier}'"
    return Finding(package, found, specifier, f"{accepted.otherwise}; {remedy}")


def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with: those of 2.10.0rc1 are 2, 10 and 0."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in leading[0].split(".")] if leading else []


def _find_devices() -> Finding:
    try:
        mindspore = _import_mindspore()
    except InputError as error:
        return Finding("devices", None, None, str(error))
    present = mindspore.get_context("device_target")  # until one is chosen: an accelerator, where there is one
    return Finding("devices", present if present == "CPU" else f"{present}, CPU")


def _import_mindspore() -> Any:
    try:
        import mindspore
    except Exception as error:  # a broken installation raises whatever it likes
        raise InputError(f"mindspore cannot be imported ({first_line(error)}); install it again") from error
    return mindspore


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """Return the processor's name; where Linux has none, as on ARM, the architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
