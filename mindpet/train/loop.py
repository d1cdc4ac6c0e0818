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

from mindpet.data.batches import Batch, Batches
from mindpet.train.interrupt import catch_stop_signals
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
    batches: Batches,
    *,
    epochs: int,
    learning_rates: Sequence[float],
    callbacks: Sequence[Callback],
    observer: Observer,
    start: Position = _BEGINNING,
    save_steps: int | None = None,
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
    stopped = False
    for callback in callbacks:
        callback.on_train_begin(context)
    with catch_stop_signals() as stop:
        for epoch in range(start.epoch, epochs + 1):
            progress.cur_epoch_num = epoch
            before = start.step if epoch == start.epoch else 0
            for done, batch in enumerate(batches.epoch(epoch - 1, before), start=before + 1):
                progress.cur_step_num += 1
                record = taker.take(batch, epoch, progress.cur_step_num)
                if done == batches.steps_per_epoch:
                    _check_parameters(step.cell, record)
                observer.after_step(record)
                for callback in callbacks:
                    callback.on_train_step_end(context)
                stopped = stop.requested or context.get_stop_requested()
                due = save_steps is not None and record.step % save_steps == 0 and done < batches.steps_per_epoch
                if stopped or due:
                    _check_parameters(step.cell, record)
                    observer.save(Position(epoch, done))
                if stopped:
                    break
            if stopped:
                break
            observer.after_epoch(epoch)
            observer.save(Position(epoch + 1))
        for callback in callbacks:
            callback.on_train_end(context)
    return not stopped


class _StepTaker:
    """Takes steps one by one, with their times, and tells the observer before one that compiles a graph."""

    def __init__(self, step: TrainStep, learning_rates: Sequence[float], observer: Observer) -> None:
        self._step = step
        self._learning_rates = learning_rates
        self._observer = observer
        self._shapes: set[tuple[int, ...]] = set()

    def take(self, batch: Batch, epoch: int, number: int) -> StepRecord:
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
