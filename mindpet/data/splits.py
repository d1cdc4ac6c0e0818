"""Splitting examples so that every split has every class in its due share."""

from collections.abc import Sequence

import numpy as np

__all__ = ["SPLIT_SHARES", "VALID_SHARE", "stratified_split"]

SPLIT_SHARES = (0.7, 0.1, 0.2)  # train, valid, test
VALID_SHARE = 0.1  # of the training examples, where there is no valid split


def stratified_split(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """Split row numbers into parts in which each class has about the share that it has in the whole.

    The rows are shuffled and laid out class by class, and each part but the first takes evenly spaced ones of them. One
    example of each class goes to the first part beforehand: no class is unknown there, however rare.

    Args:
        labels: Class numbers (N,).
        shares: The share of each part, adding up to 1. Part i > 0 gets round(shares[i] * N) rows, at least one; the
            first part gets the rest.
        seed: The same labels, shares and seed give the same parts.

    Returns:
        One ascending array of row numbers for each share, int64.

    Raises:
        ValueError: There are too few examples.
    """
    count = len(labels)
    sizes = [max(1, round(share * count)) for share in shares[1:]]
    order = np.random.default_rng(seed).permutation(count)
    order = order[np.argsort(labels[order], kind="stable")]
    first_of_class = np.diff(labels[order], prepend=-1) != 0
    kept, pool = order[first_of_class], order[~first_of_class]
    if len(pool) < sum(sizes):
        raise ValueError(
            f"{count} examples of {len(kept)} labels are too few for {len(shares)} splits with every label in the first"
        )
    parts = []
    for size in sizes:
        chosen = (2 * np.arange(size) + 1) * len(pool) // (2 * size)
        parts.append(np.sort(pool[chosen]))
        pool = np.delete(pool, chosen)
    return [np.sort(np.concatenate([kept, pool])), *parts]
