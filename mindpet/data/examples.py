"""What every source of data becomes: texts with class numbers in three splits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindpet.data.splits import SPLIT_SHARES, VALID_SHARE, stratified_split
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["ClassificationData", "Example", "Split", "divide", "number_labels", "to_split", "with_valid_from_train"]


@dataclass(frozen=True)
class Split:
    """Texts and their classes.

    Attributes:
        texts: N texts.
        labels: Their class numbers (N,), int32.
    """

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class ClassificationData:
    """A text classification task.

    Attributes:
        name: What to call it in a table or a plot.
        label_names: The classes' names; a class number is a position here.
        train: What is learnt from.
        valid: What decides during training, for example which epoch was best.
        test: What is measured once, at the end.
    """

    name: str
    label_names: tuple[str, ...]
    train: Split
    valid: Split
    test: Split


class Example(NamedTuple):
    """One text as a file has it: the label still a name, and the place to name in an error message."""

    text: str
    label: str
    place: str


def number_labels(examples: Sequence[Example], source: str | Path) -> dict[str, int]:
    """Return the class number of each label in `examples`.

    The order is that of the numbers where all labels are whole numbers, else that of the texts, so it depends neither
    on the order of the lines nor on the machine.

    Raises:
        InputError: There are no examples, or all have the same label; `source` is named.
    """
    labels = {example.label for example in examples}
    if not labels:
        raise InputError(f"{source} holds no examples; give at least two of each of two labels.")
    if len(labels) == 1:
        raise InputError(f"{source} has the one label {labels.pop()!r} only; a classifier needs at least two.")
    all_numbers = all(re.fullmatch("-?[0-9]{1,18}", label) for label in labels)
    ordered = sorted(labels, key=lambda label: (int(label), label)) if all_numbers else sorted(labels)
    return {label: number for number, label in enumerate(ordered)}


def divide(
    examples: Sequence[Example],
    numbers: dict[str, int],
    seed: int,
    source: str | Path,
    shares: Sequence[float] = SPLIT_SHARES,
) -> list[Split]:
    """Return `examples` as stratified splits of these shares; see `stratified_split`.

    Raises:
        InputError: There are too few examples for every split to get one; `source` is named.
    """
    whole = to_split(examples, numbers)
    try:
        parts = stratified_split(whole.labels, shares, seed)
    except ValueError as error:
        raise InputError(f"{source}: {error}; give more examples, or splits of your own.") from error
    return [Split(tuple(whole.texts[row] for row in rows), whole.labels[rows]) for rows in parts]


def to_split(examples: Sequence[Example], numbers: dict[str, int]) -> Split:
    """Return `examples` with their labels as class numbers.

    Raises:
        InputError: A label is not in `numbers`; its file and line are named.
    """
    for example in examples:
        if example.label not in numbers:
            near = nearest_names(example.label, numbers, count=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(map(repr, list(numbers)[:8]))}."
            raise InputError(f"{example.place}: no training example has the label {example.label!r}; {hint}")
    labels = np.array([numbers[example.label] for example in examples], dtype=np.int32)
    return Split(tuple(example.text for example in examples), labels)


def with_valid_from_train(
    name: str, train: list[Example], test: list[Example], seed: int, train_path: Path
) -> ClassificationData:
    """Return data whose valid split is a tenth of `train`, by label and seed.

    Raises:
        InputError: `train` has too few examples or labels, or `test` has a label that no training example has.
    """
    numbers = number_labels(train, train_path)
    train_split, valid_split = divide(train, numbers, seed, train_path, (1 - VALID_SHARE, VALID_SHARE))
    return ClassificationData(name, tuple(numbers), train_split, valid_split, to_split(test, numbers))
