"""What every source of language data becomes: passages and conversations in three splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mindpet.data.chat import Message
from mindpet.data.splits import SPLIT_SHARES, stratified_split
from mindpet.utils.exceptions import InputError

__all__ = ["Conversation", "LanguageData", "LanguageExample", "Passage", "divide_examples"]

_Example = TypeVar("_Example")


@dataclass(frozen=True)
class Passage:
    """A text, all of which is learnt.

    Attributes:
        text: The text.
        place: File and line, to name in an error message.
    """

    text: str
    place: str


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the assistant's are learnt; the last one is the assistant's.

    Attributes:
        messages: The turns.
        place: File and line, to name in an error message.
    """

    messages: tuple[Message, ...]
    place: str


LanguageExample = Passage | Conversation


@dataclass(frozen=True)
class LanguageData:
    """A language modelling task.

    Attributes:
        name: What to call it in a table or a plot.
        train: What is learnt from.
        valid: What decides during training, for example which epoch was best.
        test: What is measured once, at the end.
    """

    name: str
    train: tuple[LanguageExample, ...]
    valid: tuple[LanguageExample, ...]
    test: tuple[LanguageExample, ...]


def divide_examples(
    examples: Sequence[_Example],
    seed: int,
    source: str | Path,
    shares: Sequence[float] = SPLIT_SHARES,
    kinds: Sequence[int] | None = None,
) -> list[tuple[_Example, ...]]:
    """Return `examples` as splits of these shares; see `stratified_split`.

    Args:
        examples: The examples, in an order that does not depend on the machine.
        seed: Decides the splits.
        source: Named in an error message.
        shares: The share of each split.
        kinds: A number for each example; each split gets its share of each kind. None has one kind.

    Raises:
        InputError: There are too few examples for every split to get one.
    """
    numbers = np.zeros(len(examples), np.int64) if kinds is None else np.array(kinds)
    try:
        parts = stratified_split(numbers, shares, seed)
    except ValueError as error:
        raise InputError(
            f"{source} holds {len(examples)} examples, too few for {len(shares)} splits; give more, or splits of your "
            "own."
        ) from error
    return [tuple(examples[row] for row in rows) for rows in parts]
