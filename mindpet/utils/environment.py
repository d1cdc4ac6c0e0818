"""What MindPet runs on: versions, machine and devices, and what of it is known not to work.

MindSpore is imported only when its devices are asked for, so that a broken installation can be described too.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mindpet import __version__
from mindpet.utils.exceptions import InputError
from mindpet.utils.requirements import asks_for, find_unmet, numbers, version_of

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
        note: What works, but not as well as it could or not for long, and what to do; or None.
    """

    name: str
    found: str | None
    accepted: str | None = None
    problem: str | None = None
    note: str | None = None


def read_environment() -> list[Finding]:
    """Return the versions of mindpet, python, mindspore, numpy and scipy, the usable devices and the machine.

    Of the other packages that MindPet and MindSpore ask for, those that are missing or of a wrong version are named.
    """
    packages = [_check(package, accepted) for package, accepted in RANGES.items()]
    machine = [Finding("processor", f"{_processor()}, {usable_cores()} cores"), Finding("system", platform.platform())]
    return [_check_own(), *packages, *_find_unmet(), *_find_mindformers(), _find_devices(), *machine]


def describe_environment(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the date (UTC) and the findings in a form that JSON has: what was found by name, problems and notes."""
    findings = list(findings)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": {finding.name: finding.found for finding in findings},
        "problems": {finding.name: finding.problem for finding in findings if finding.problem},
        "notes": {finding.name: finding.note for finding in findings if finding.note},
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


def _check_own() -> Finding:
    installed = version_of("mindpet")
    if installed in (None, __version__):
        return Finding("mindpet", installed or __version__)
    problem = f"pip has installed {installed}, and what is imported is {__version__}; install mindpet again"
    return Finding("mindpet", installed, __version__, problem)


def _check(package: str, accepted: Range) -> Finding:
    found = platform.python_version() if package == "python" else version_of(package)
    specifier = f">={accepted.lowest},<{accepted.below}"
    if found and numbers(accepted.lowest) <= numbers(found) < numbers(accepted.below):
        return Finding(package, found, specifier)
    remedy = "use such a Python" if package == "python" else f"pip install '{package}{specifier}'"
    return Finding(package, found, specifier, f"{accepted.otherwise}; {remedy}")


def _find_unmet() -> list[Finding]:
    """Return what MindPet and MindSpore ask for and do not find, such as the protobuf that MindSpore's files need."""
    findings: dict[str, Finding] = {}
    for owner in ("mindpet", "mindspore"):
        for name, found, specifier in find_unmet(owner, leave_out=RANGES.keys() | findings.keys()):
            problem = f"{owner} asks for it; pip install '{name}{specifier}'"
            findings[name] = Finding(name, found, specifier or "any", problem)
    return list(findings.values())


def _find_mindformers() -> list[Finding]:
    found, wanted = version_of("mindformers"), asks_for("mindformers").get("mindpet")
    if found is None:
        return []
    note = None
    if wanted:
        note = (
            f"it asks for mindpet{wanted}, so that pip puts that in the place of {__version__} whenever it installs "
            "MindFormers; install mindpet after it, with `pip install --no-deps mindpet`"
        )
    return [Finding("mindformers", found, None, note=note)]


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
