"""What a run is about: the seam between the training loop, which knows no task, and the tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from mindpet.data.batches import RowBatches
from mindpet.utils.exceptions import InputError

if TYPE_CHECKING:
    from mindspore import nn
    from rich.console import Console

    from mindpet.data.tokenizer import Tokenizer
    from mindpet.train.ranks import Ranks
    from mindpet.train.settings import FinetuneSettings

__all__ = [
    "CLASSIFICATION",
    "LANGUAGE",
    "Encoded",
    "Metric",
    "Task",
    "Tested",
    "recognise_task",
    "require_vocabulary",
    "room_for_texts",
]

CLASSIFICATION = "classification"
LANGUAGE = "language"


BatchesT = TypeVar("BatchesT", bound=RowBatches[Any], covariant=True)


@dataclass(frozen=True)
class Encoded(Generic[BatchesT]):
    """The batches of each split."""

    train: BatchesT
    valid: BatchesT
    test: BatchesT


@dataclass(frozen=True)
class Metric:
    """What is measured on the validation split after each epoch.

    Attributes:
        name: What it is called.
        highest: The largest value that it can have, or None where there is none; the smallest is 0.
    """

    name: str
    highest: float | None = None

    @property
    def key(self) -> str:
        """Its name in the log and in the metrics."""
        return f"valid_{self.name}"


class Tested(NamedTuple):
    """What the test split has shown.

    Attributes:
        figures: By their names in the metrics.
        predicted: The class of each test text (texts,); empty where a task has no classes.
    """

    figures: dict[str, float]
    predicted: np.ndarray


class Task(Protocol):
    """Data and network of a run, read and checked, and what they are trained and judged by."""

    name: ClassVar[str]
    metric: ClassVar[Metric]
    embedded_model: ClassVar[str]

    @property
    def network(self) -> nn.Cell:
        """The network; the method is attached to it later."""

    @property
    def encoded(self) -> Encoded[RowBatches[Any]]:
        """The batches of each split."""

    @property
    def data_name(self) -> str:
        """What to call the data."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes; none where there are no classes."""

    @property
    def loss(self) -> Callable[[nn.Cell], nn.Cell]:
        """What makes the loss cell of a network; see `mindpet.train.losses`."""

    def measure_base(self, ranks: Ranks, console: Console) -> dict[str, float | None]:
        """Return what the result is compared with, by names in the metrics, measured before anything is attached."""

    def start_method(self) -> None:
        """Give the method, once it is attached, the values that it starts from, where the settings name some."""

    def measure_valid(self, ranks: Ranks) -> float:
        """Return the metric on the validation split."""

    def test(self, ranks: Ranks) -> Tested:
        """Return what the test split shows."""


def recognise_task(model: Path | None) -> str:
    """Return the task of a model's folder: LANGUAGE for the causal language models that are known, by `model_type`.

    What cannot be read is left to whoever loads the model.
    """
    if model is None or not (model / "config.json").is_file():
        return CLASSIFICATION
    from mindpet.models.auto import is_causal_lm

    return LANGUAGE if is_causal_lm(model) else CLASSIFICATION


def require_vocabulary(model: Path | None, tokenizer: Tokenizer, rows: int) -> None:
    """Refuse a tokenizer that knows tokens for which the network has no embedding.

    Args:
        model: The model's folder, to name in the message.
        tokenizer: Read from it.
        rows: How many tokens the embedding holds.

    Raises:
        InputError: The embedding is too small.
    """
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{model}: the tokenizer knows {tokenizer.vocab_size} tokens, but the network's embedding holds {rows}; "
            "take tokenizer and model from the same folder"
        )


def room_for_texts(settings: FinetuneSettings, positions: int) -> int:
    """Return how many of a network's positions a text may have beside the method's prefix.

    Raises:
        InputError: The prefix leaves no room.
    """
    prefix = settings.num_virtual_tokens or 0
    if prefix and positions - prefix < 3:
        raise InputError(
            f"num_virtual_tokens: {prefix} tokens leave no room for a text among the {positions} positions of "
            f"{settings.model}; take fewer"
        )
    return positions - prefix
