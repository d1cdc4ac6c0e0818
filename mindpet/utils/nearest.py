"""Suggestions for a name that does not exist."""

import difflib
from collections.abc import Iterable

__all__ = ["nearest_names"]


def nearest_names(name: str, candidates: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of `candidates` that look most like `name`, best first; the case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5)
    return [by_lower[match] for match in matches]
