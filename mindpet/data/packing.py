"""Several examples in a row, so that little is padding."""

import heapq

import numpy as np

from mindpet.data.language import TokenSequences

__all__ = ["pack"]


def pack(sequences: TokenSequences, width: int) -> TokenSequences:
    """Return rows of at most `width` tokens that hold the examples one behind the other.

    Each example goes, the longest first, into the fullest row that has room for it (best-fit packing,
    arXiv:2404.10830). Only an example longer than a row is cut, into pieces as long as a row and a rest. Every token
    and every target stays.

    Positions run on within a row, and a token can attend to the examples before its own in the row: they are kept apart
    by nothing but the token that ends a text. The beginning of an example is never the target of the one before it.

    Args:
        sequences: The examples, as `mindpet.data.language.encode` gives them.
        width: The largest length of a row.

    Returns:
        The rows, in the order of their first pieces' lengths.

    Raises:
        ValueError: `width` is not positive.
    """
    if width < 1:
        raise ValueError(f"width is {width}; expected at least 1.")
    pieces = [
        (row, begin, min(begin + width, length))
        for row, length in enumerate(sequences.lengths)
        for begin in range(0, length, width)
    ]
    pieces.sort(key=lambda piece: piece[1] - piece[2])
    rows: list[list[tuple[int, int, int]]] = []
    rows_with_room: dict[int, list[int]] = {}
    for piece in pieces:
        length = piece[2] - piece[1]
        room = min((room for room in rows_with_room if room >= length), default=width)
        number = heapq.heappop(rows_with_room[room]) if room in rows_with_room else len(rows)
        if number == len(rows):
            rows.append([])
        elif not rows_with_room[room]:
            del rows_with_room[room]
        rows[number].append(piece)
        heapq.heappush(rows_with_room.setdefault(room - length, []), number)
    return TokenSequences(
        tuple(_joined(sequences.input_ids, row) for row in rows),
        tuple(_joined(sequences.labels, row) for row in rows),
        sequences.shortened_prompts,
        sequences.shortened_targets,
    )


def _joined(arrays: tuple[np.ndarray, ...], pieces: list[tuple[int, int, int]]) -> np.ndarray:
    return np.concatenate([arrays[row][begin:end] for row, begin, end in pieces])
