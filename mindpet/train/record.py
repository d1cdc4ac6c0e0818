"""What is known of a training step once it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["TIMES", "StepRecord"]

TIMES = frozenset({"seconds", "compiled", "waited"})  # the fields that no two runs have in common


@dataclass(frozen=True)
class StepRecord:
    """One finished step.

    Attributes:
        step: Its number from 1 on over all epochs.
        epoch: The number of its epoch from 1 on.
        loss: The loss before the update.
        learning_rate: That of the step.
        texts: Number of texts in it.
        seconds: How long it took.
        compiled: Whether the graph was compiled for it, because its shape was new.
        skipped: Whether the update was skipped, because a float16 gradient overflowed.
        loss_scale: The factor that the loss was multiplied by; 1 without loss scaling.
        waited: How many seconds it took to get its batch, before the step began.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    texts: int
    seconds: float
    compiled: bool
    skipped: bool
    loss_scale: float
    waited: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)
