"""The training loop: plain steps in order, watched by MindSpore callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from mindspore import nn
from mindspore.train import Callback, RunContext

from mindpet.data.batches import RowBatches
from mindpet.train.interrupt import StopRequest, catch_stop_signals
from mindpet.train.ranks import ALONE, Ranks
from mindpet.train.record import StepRecord
from mindpet.train.step import TrainStep
from mindpet.utils.exceptions import DivergedError

__all__ = ["Observer", "Position", "train"]


@dataclass(frozen=True)
class Position:
    """A place between two steps.

    Attributes:
        epoch: The epoch at hand, from 1 on; behind the last one when the run is at its end.
        step: The steps done in it. When all of them are done, the epoch's evaluation is still to come.
    """

    epoch: int = 1
    step: int = 0


_BEGINNING = Position()


class Observer(Protocol):
    """Whoever wants to know how the loop goes on."""

    def before_compile(self, shape: tuple[int, ...]) -> None:
        """Learn that the next step compiles a graph for batches of `shape`."""

    def after_step(self, record: StepRecord) -> None:
        """Learn of a finished step."""

    def after_epoch(self, epoch: int) -> None:
        """Learn that epoch number `epoch` is finished."""

    def save(self, position: Position) -> None:
        """Save what it takes to go on later from `position`, which is reached; all trained parameters are finite."""


def train(
    step: TrainStep,
    batches: RowBatches[Any],
    *,
    epochs: int,
    learning_rates: Sequence[float],
    callbacks: Sequence[Callback],
    observer: Observer,
    start: Position = _BEGINNING,
    save_steps: int | None = None,
    ranks: Ranks = ALONE,
) -> bool:
    """Run `epochs` passes over `batches`.

    Args:
        step: What a step does.
        batches: The training batches.
        epochs: Number of passes.
        learning_rates: That of each step, for the records.
        callbacks: MindSpore callbacks such as `TrainableParamsCheckPoint`; told of the begin, each step and the end.
        observer: Told of each step and epoch; asked to save after each epoch and before an early end.
        start: Where to begin. What a step changes must be as it was there.
        save_steps: The observer is asked to save after every so many steps too.
        ranks: Who takes the steps together; when one of them is asked to stop, all stop after the same step.

    Returns:
        Whether all passes were made; False when Ctrl-C, SIGTERM or a callback asked for an end.

    Raises:
        DivergedError: The loss or a parameter is not finite; checkpoints made before it are whole.
    """
    if start.epoch > epochs:
        return True
    taker = _StepTaker(step, learning_rates, observer)
    progress = _Progress(train_network=step.cell, batch_num=batches.steps_per_epoch, epoch_num=epochs)
    progress.cur_step_num = (start.epoch - 1) * batches.steps_per_epoch + start.step
    context = RunContext(progress)
    for callback in callbacks:
        callback.on_train_begin(context)
    with catch_stop_signals() as stop:
        loop = _Loop(taker, batches, callbacks, observer, context, save_steps, ranks, stop)
        finished = all(
            loop.run_epoch(epoch, start.step if epoch == start.epoch else 0) for epoch in range(start.epoch, epochs + 1)
        )
        for callback in callbacks:
            callback.on_train_end(context)
    return finished


@dataclass(frozen=True)
class _Loop:
    """What takes part in the loop; `train` explains it."""

    taker: _StepTaker
    batches: RowBatches[Any]
    callbacks: Sequence[Callback]
    observer: Observer
    context: RunContext
    save_steps: int | None
    ranks: Ranks
    stop: StopRequest

    def run_epoch(self, epoch: int, before: int) -> bool:
        """Run an epoch of which `before` steps are done; tell whether it came to its end."""
        progress = self.context.original_args()
        progress.cur_epoch_num = epoch
        asked = time.perf_counter()
        for done, batch in enumerate(self.batches.epoch(epoch - 1, before), start=before + 1):
            progress.cur_step_num += 1
            record = self.taker.take(batch, time.perf_counter() - asked, epoch, progress.cur_step_num)
            stopped = self._after_step(record, Position(epoch, done))
            if stopped:
                return False
            asked = time.perf_counter()
        self.observer.after_epoch(epoch)
        self.observer.save(Position(epoch + 1))
        return True

    def _after_step(self, record: StepRecord, position: Position) -> bool:
        """Tell of a finished step, save where it is time to, and tell whether the run is to end here."""
        network, is_last = self.context.original_args().train_network, position.step == self.batches.steps_per_epoch
        if is_last:
            _check_parameters(network, record)
        self.observer.after_step(record)
        for callback in self.callbacks:
            callback.on_train_step_end(self.context)
        stopped = self.ranks.any(self.stop.requested or self.context.get_stop_requested())
        due = self.save_steps is not None and record.step % self.save_steps == 0 and not is_last
        if stopped or due:
            _check_parameters(network, record)
            self.observer.save(position)
        return stopped


class _StepTaker:
    """Takes steps one by one, with their times, and tells the observer before one that compiles a graph."""

    def __init__(self, step: TrainStep, learning_rates: Sequence[float], observer: Observer) -> None:
        self._step = step
        self._learning_rates = learning_rates
        self._observer = observer
        self._shapes: set[tuple[int, ...]] = set()

    def take(self, batch: Any, waited: float, epoch: int, number: int) -> StepRecord:
        """Take step number `number`; a DivergedError says that its loss is not finite."""
        shape = batch.input_ids.shape
        compiles = shape not in self._shapes
        if compiles:
            self._observer.before_compile(shape)
            self._shapes.add(shape)
        start = time.perf_counter()
        outcome = self._step(batch)
        record = StepRecord(
            step=number,
            epoch=epoch,
            learning_rate=self._learning_rates[number - 1],
            texts=int(np.sum(batch.indices >= 0)),
            seconds=time.perf_counter() - start,
            compiled=compiles,
            waited=waited,
            **outcome._asdict(),
        )
        _check_loss(record)
        return record


class _Progress(dict[str, Any]):
    """What MindSpore's callbacks read of a run: a mapping whose entries are attributes too."""

    cur_step_num: int
    cur_epoch_num: int

    def __init__(self, **entries: Any) -> None:
        super().__init__(cur_step_num=0, cur_epoch_num=1, **entries)
        self.__dict__ = self


def _check_loss(record: StepRecord) -> None:
    """Raise DivergedError when the loss is not finite; a skipped step is none while the loss scale can fall."""
    if record.skipped and record.loss_scale <= 1:
        raise _diverged(record, "gradients overflow float16 without any loss scale")
    if not record.skipped and not math.isfinite(record.loss):
        raise _diverged(record, f"the loss is {record.loss}")


def _check_parameters(cell: nn.Cell, record: StepRecord) -> None:
    """Raise DivergedError when a trained parameter is not finite after the step of `record`."""
    for parameter in cell.trainable_params():
        if not np.isfinite(parameter.asnumpy()).all():
            raise _diverged(record, f"{parameter.name} is not finite")


def _diverged(record: StepRecord, what: str) -> DivergedError:
    return DivergedError(
        f"step {record.step}: {what}, at learning rate {record.learning_rate:.2g}; lower the learning rates "
        "(a fifth is a good first try) or raise the warm-up share"
    )
