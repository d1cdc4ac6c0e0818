"""Batches of few constant shapes: every new shape compiles the graph again."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

__all__ = ["Batch", "Batches", "RowBatches", "length_buckets"]

_Batch = TypeVar("_Batch")

_MOST_WIDTHS = 512  # are looked at; the widths of longer texts are multiples of 2, 3 and so on
_PRICE_OF_A_WIDTH = 1.1  # one more width must cut the positions by this factor to be worth compiling a graph for it


class Batch(NamedTuple):
    """What one step sees: B rows of L tokens.

    A filler row completes a batch; it repeats another row and has label -1 and index -1.

    Attributes:
        input_ids: (B, L) int32.
        attention_mask: (B, L) int32, 1 for a token and 0 for padding.
        token_type_ids: (B, L) int32, all 0.
        labels: (B,) int32, -1 for a filler, which losses and metrics ignore.
        indices: (B,) int64, each row's place in the input, -1 for a filler.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def length_buckets(
    lengths: Sequence[int] | np.ndarray, max_length: int, batch_size: int, count: int = 3
) -> tuple[int, ...]:
    """Return the widths of at most `count` buckets that keep the share of padding low.

    Chooses the widths for which the positions of all batches, padding and filler rows included, are fewest, and takes
    one more width only where it saves about a tenth of them: few texts, or nearly equal lengths, get one width.

    Args:
        lengths: Tokens of each text.
        max_length: No width is larger; longer texts count as this long.
        batch_size: Rows of a batch.
        count: The largest number of widths.

    Returns:
        Ascending widths; the last one takes the longest text.

    Raises:
        ValueError: There are no texts.
    """
    if not len(lengths):
        raise ValueError("length_buckets got no lengths; give at least one text.")
    longest = min(max(lengths), max_length)
    unit = -(-longest // _MOST_WIDTHS)
    rounded = -(-np.asarray(lengths) // unit) * unit
    widths, texts = np.unique(np.minimum(rounded, longest), return_counts=True)
    last = len(widths) - 1
    ends = np.cumsum(texts)
    rows = ends - (ends - texts)[:, None]
    # cost[i, j]: positions when the texts of the i-th to the j-th length share batches as wide as the j-th.
    cost = np.where(rows > 0, np.ceil(rows / batch_size) * batch_size * widths, np.inf)
    fewest = cost[0]
    chosen, price, before = [last], fewest[last], []
    for number in range(1, min(count, len(widths))):
        # Where the last bucket begins after the i-th length, the ones before it are best chosen already.
        candidates = fewest[:-1, None] + cost[1:]
        before.append(candidates.argmin(axis=0))
        fewest = candidates.min(axis=0)
        if fewest[last] * _PRICE_OF_A_WIDTH**number < price:
            price, chosen = fewest[last] * _PRICE_OF_A_WIDTH**number, [last]
            for previous in reversed(before):
                chosen.insert(0, int(previous[chosen[0]]))
    return tuple(int(widths[end]) for end in chosen)


class RowBatches(ABC, Generic[_Batch]):
    """Encoded texts as batches of exactly `batch_size` rows and one of a few widths; no text is ever dropped.

    The order of an epoch is a function of the seed and the epoch's number alone, so that a run can go on in the middle
    of an epoch after a restart.

    Args:
        encoded: The tokens of each text, none longer than the last width.
        batch_size: Rows of a batch.
        widths: Ascending; a text goes to the first that takes it (see `length_buckets`).
        pad_id: The token that fills a row up.
        seed: Not negative.

    Raises:
        ValueError: There are no texts, or one is longer than the last width.
    """

    def __init__(
        self, encoded: Sequence[np.ndarray], batch_size: int, widths: Sequence[int], pad_id: int, seed: int = 0
    ):
        if not len(encoded):
            raise ValueError(f"{type(self).__name__} got no texts; give at least one.")
        lengths = np.array([len(tokens) for tokens in encoded], dtype=np.int64)
        if lengths.max() > widths[-1]:
            raise ValueError(
                f"{type(self).__name__} got a text of {lengths.max()} tokens; the widest batch has {widths[-1]}."
            )
        self.batch_size = batch_size
        self._encoded = encoded
        self._pad_id = pad_id
        self._seed = seed
        bucket_of = np.searchsorted(widths, lengths)
        buckets = [(width, np.flatnonzero(bucket_of == number)) for number, width in enumerate(widths)]
        self._buckets = [(width, rows) for width, rows in buckets if len(rows)]
        positions = sum(batch_size * width for width, _ in self._chunks(self._buckets))
        self._padding_share = 1 - int(lengths.sum()) / positions

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        return len(self._chunks(self._buckets))

    @property
    def padding_share(self) -> float:
        """The share of an epoch's positions that holds padding or filler rows, from 0 to 1."""
        return self._padding_share

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The shapes (batch_size, width) that occur, narrowest first."""
        return tuple((self.batch_size, width) for width, _ in self._buckets)

    def epoch(self, number: int, start: int = 0) -> Iterator[_Batch]:
        """Yield the batches of an epoch, shuffled within the buckets and across them.

        Args:
            number: The epoch's number, from 0.
            start: How many batches to leave out, for going on in the middle of an epoch.

        Raises:
            ValueError: `start` is not from 0 to `steps_per_epoch`.
        """
        if not 0 <= start <= self.steps_per_epoch:
            raise ValueError(f"epoch got start={start}; expected 0 to {self.steps_per_epoch}, the batches of an epoch.")
        generator = np.random.default_rng([self._seed, number])
        chunks = self._chunks([(width, generator.permutation(rows)) for width, rows in self._buckets])
        order = generator.permutation(len(chunks))
        return (self._make(*chunks[place]) for place in order[start:])

    def ordered(self) -> Iterator[_Batch]:
        """Yield all batches, bucket by bucket, each bucket in the order of the input; see `to_input_order`."""
        return (self._make(width, rows) for width, rows in self._chunks(self._buckets))

    def to_input_order(self, outputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the rows computed from the batches of `ordered` in the order of the input, fillers left out.

        Args:
            outputs: One array (B, ...) for each batch of `ordered`.

        Returns:
            Array (N, ...).

        Raises:
            ValueError: There is not one array for each batch.
        """
        chunks = self._chunks(self._buckets)
        if len(outputs) != len(chunks):
            raise ValueError(f"to_input_order got {len(outputs)} outputs; expected {len(chunks)}, one for each batch.")
        rows = np.concatenate([rows for _, rows in chunks])
        values = np.concatenate([output[: len(rows)] for output, (_, rows) in zip(outputs, chunks, strict=True)])
        return values[np.argsort(rows)]

    def _chunks(self, buckets: Sequence[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
        """Return the width and the text numbers of each batch, fillers left out."""
        return [
            (width, rows[begin : begin + self.batch_size])
            for width, rows in buckets
            for begin in range(0, len(rows), self.batch_size)
        ]

    @abstractmethod
    def _make(self, width: int, rows: np.ndarray) -> _Batch:
        """Return the batch of the texts with these numbers, filled up to `batch_size` rows."""

    def _fill(self, width: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return input_ids and attention_mask (batch_size, width), and indices (batch_size,) of a batch."""
        fillers = self.batch_size - len(rows)
        input_ids = np.full((self.batch_size, width), self._pad_id, dtype=np.int32)
        attention_mask = np.zeros_like(input_ids)
        # A filler repeats a real text: a row without any visible token would make a mean over its tokens NaN.
        for place, row in enumerate(np.pad(rows, (0, fillers), mode="wrap")):
            tokens = self._encoded[row]
            input_ids[place, : len(tokens)] = tokens
            attention_mask[place, : len(tokens)] = 1
        return input_ids, attention_mask, np.pad(rows, (0, fillers), constant_values=-1)


class Batches(RowBatches[Batch]):
    """Encoded texts with a class each as batches; see `RowBatches`.

    Args:
        encoded: The tokens of each text, none longer than the last width.
        labels: Class numbers (N,).
        batch_size: Rows of a batch.
        widths: Ascending; a text goes to the first that takes it (see `length_buckets`).
        pad_id: The token that fills a row up.
        seed: Not negative.

    Raises:
        ValueError: There are no texts, not one label for each, or a text is longer than the last width.
    """

    def __init__(
        self,
        encoded: Sequence[np.ndarray],
        labels: np.ndarray,
        batch_size: int,
        widths: Sequence[int],
        pad_id: int,
        seed: int = 0,
    ):
        if len(labels) != len(encoded):
            raise ValueError(
                f"Batches got {len(encoded)} texts and {len(labels)} labels; give one label for each text."
            )
        super().__init__(encoded, batch_size, widths, pad_id, seed)
        self._labels = np.asarray(labels, dtype=np.int32)

    def _make(self, width: int, rows: np.ndarray) -> Batch:
        input_ids, attention_mask, indices = self._fill(width, rows)
        labels = np.pad(self._labels[rows], (0, self.batch_size - len(rows)), constant_values=-1)
        return Batch(input_ids, attention_mask, np.zeros_like(input_ids), labels, indices)
