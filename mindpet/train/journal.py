"""What a run has done so far: in memory, in the run folder's log and on the screen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mindpet.train.loop import Position
from mindpet.train.progress import TrainingProgress
from mindpet.train.record import StepRecord
from mindpet.train.run_folder import RunFolder
from mindpet.train.task import Metric

__all__ = ["Follower", "Journal"]


class Follower:
    """Watches a run on a rank that keeps no journal: it only takes part in measuring.

    Args:
        measure: Returns the metric on the validation split.
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        self._measure = measure

    def before_compile(self, shape: tuple[int, ...]) -> None:
        """Do nothing."""

    def after_step(self, record: StepRecord) -> None:
        """Do nothing."""

    def after_epoch(self, epoch: int) -> None:
        """Take part in measuring the validation metric."""
        self._measure()

    def save(self, position: Position) -> None:
        """Do nothing."""


class Journal:
    """Notes each step and each epoch of a run.

    Args:
        folder: Its log receives a line a step and a line an epoch.
        progress: What the person at the screen sees.
        metric: What is measured on the validation split after each epoch.
        measure: Returns it.
        save_state: Saves what a resume needs besides the log.
        earlier: The entries of the log so far, when a run is resumed.
        report: Told of each new entry of the log too.

    Attributes:
        losses: The loss of each step.
        measured: The metric after each epoch, by the number of steps done.
    """

    def __init__(
        self,
        folder: RunFolder,
        progress: TrainingProgress,
        metric: Metric,
        measure: Callable[[], float],
        save_state: Callable[[Position], None],
        earlier: Iterable[Mapping[str, Any]] = (),
        report: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        earlier = list(earlier)
        self._records = [StepRecord(**entry) for entry in earlier if "loss" in entry]
        self.losses = [record.loss for record in self._records]
        self.measured = {entry["step"]: entry[metric.key] for entry in earlier if "loss" not in entry}
        self._folder = folder
        self._progress = progress
        self._metric = metric
        self._measure = measure
        self._save_state = save_state
        self._report = report

    @property
    def last_measured(self) -> float:
        """The newest value of the metric."""
        return list(self.measured.values())[-1]

    def before_compile(self, shape: tuple[int, ...]) -> None:
        """Note that the next step compiles a graph for batches of `shape`."""
        self._progress.before_compile(shape)

    def after_step(self, record: StepRecord) -> None:
        """Note a finished step."""
        self._records.append(record)
        self.losses.append(record.loss)
        self._note(record.as_dict())
        self._progress.after_step(record)

    def after_epoch(self, epoch: int) -> None:
        """Measure and note the metric after epoch number `epoch`."""
        value = self._measure()
        self.measured[len(self.losses)] = value
        self._note({"epoch": epoch, "step": len(self.losses), self._metric.key: value})
        self._progress.after_epoch(epoch, value)

    def save(self, position: Position) -> None:
        """Save the run as it is at `position`: first the log's lines up to there, then the state."""
        self._folder.sync_log()
        self._save_state(position)

    def timings(self) -> dict[str, float | None]:
        """Return the time of a usual step, of all steps, and what compiling and waiting for batches added to them.

        Where every step has compiled, nothing tells what a usual step takes: what depends on it is None then.
        """
        usual = [record.seconds for record in self._records if not record.compiled]
        seconds = sum(record.seconds for record in self._records)
        waited = sum(record.waited for record in self._records)
        median = statistics.median(usual) if usual else math.nan
        compiling = sum(max(record.seconds - median, 0.0) for record in self._records if record.compiled)
        return {
            "step_ms_median": median * 1e3 if usual else None,
            "train_seconds": seconds,
            "compile_seconds": compiling if usual else None,
            "waiting_share": waited / (waited + seconds - compiling) if usual else None,
            "skipped_steps": sum(record.skipped for record in self._records),
        }

    def _note(self, entry: Mapping[str, Any]) -> None:
        self._folder.log(entry)
        if self._report is not None:
            self._report(entry)
