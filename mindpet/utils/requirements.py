"""What installed packages ask for and do not find, by their own metadata."""

from __future__ import annotations

import operator
import re
from collections.abc import Container
from importlib import metadata
from typing import NamedTuple

__all__ = ["Unmet", "asks_for", "find_unmet", "numbers", "version_of"]

_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
_BOUND = re.compile(r"(>=|<=|==|>|<)\s*(\d[\w.]*)")


class Unmet(NamedTuple):
    """A requirement that is not met.

    Attributes:
        name: The package that is asked for.
        found: Its version, or None where it is not installed.
        specifier: The versions that would do.
    """

    name: str
    found: str | None
    specifier: str


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def asks_for(package: str) -> dict[str, str]:
    """Return the versions that an installed package asks for, by package; what only an extra needs is left out."""
    try:
        texts = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return {}
    parts = (re.fullmatch(r"([\w.-]+)\s*\(?([^();]*)\)?", text.strip()) for text in texts)  # none with a condition
    return {part[1]: part[2].strip() for part in parts if part}


def find_unmet(package: str, leave_out: Container[str]) -> list[Unmet]:
    """Return what an installed package asks for and does not find.

    Args:
        package: The package; one that is not installed asks for nothing.
        leave_out: Packages that are not looked at.
    """
    wanted = ((name, version_of(name), specifier) for name, specifier in asks_for(package).items())
    return [
        Unmet(name, found, specifier)
        for name, found, specifier in wanted
        if name not in leave_out and not (found and _is_within(found, specifier))
    ]


def numbers(version: str) -> list[int]:
    """Return the numbers that a version begins with: those of 2.10.0rc1 are 2, 10 and 0."""
    leading = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in leading[0].split(".")] if leading else []


def _is_within(version: str, specifier: str) -> bool:
    """Tell whether a version is within all bounds; trailing zeros do not count."""
    return all(_COMPARISONS[sign](_trim(version), _trim(bound)) for sign, bound in _BOUND.findall(specifier))


def _trim(version: str) -> list[int]:
    parts = numbers(version)
    while parts and parts[-1] == 0:
        parts.pop()
    return parts
