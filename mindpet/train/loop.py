"""The training loop: plain steps in order, watched by MindSpore callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from mindspore import nn
from mindspore.train import Callback, RunContext

from mindpet.data.batches import Batches
from mindpet.train.interrupt import catch_stop_signals
from mindpet.train.record import StepRecord
from mindpet.train.step import TrainStep
from mindpet.utils.exceptions import DivergedError

__all__ = ["Observer", "train"]


class Observer(Protocol):
    """Whoever wants to know how the loop goes on."""

    def before_compile(self, shape: tuple[int, ...]) -> None:
        """Learn that the next step compiles a graph for batches of `shape`."""

    def after_step(self, record: StepRecord) -> None:
        """Learn of a finished step."""

    def after_epoch(self, epoch: int) -> None:
        """Learn that epoch number `epoch` is finished."""


def train(
    step: TrainStep,
    batches: Batches,
    *,
    epochs: int,
    learning_rates: Sequence[float],
    callbacks: Sequence[Callback],
    observer: Observer,
) -> bool:
    """Run `epochs` passes over `batches`.

    Args:
        step: What a step does.
        batches: The training batches.
        epochs: Number of passes.
        learning_rates: That of each step, for the records.
        callbacks: MindSpore callbacks such as `TrainableParamsCheckPoint`; told of the begin, each step and the end.
        observer: Told of each step and epoch.

    Returns:
        Whether all passes were made; False when Ctrl-C, SIGTERM or a callback asked for an end.

    Raises:
        DivergedError: The loss or a parameter is not finite; checkpoints made before it are whole.
    """
    progress = _Progress(train_network=step.cell, batch_num=batches.steps_per_epoch, epoch_num=epochs)
    context = RunContext(progress)
    shapes: set[tuple[int, ...]] = set()
    stopped = False
    for callback in callbacks:
        callback.on_train_begin(context)
    with catch_stop_signals() as stop:
        for epoch in range(1, epochs + 1):
            progress.cur_epoch_num = epoch
            for batch in batches.epoch(epoch - 1):
                shape = batch.input_ids.shape
                compiles = shape not in shapes
                if compiles:
                    observer.before_compile(shape)
                    shapes.add(shape)
                start = time.perf_counter()
                outcome = step(batch)
                progress.cur_step_num += 1
                record = StepRecord(
                    step=progress.cur_step_num,
                    epoch=epoch,
                    learning_rate=learning_rates[progress.cur_step_num - 1],
                    texts=int(np.sum(batch.indices >= 0)),
                    seconds=time.perf_counter() - start,
                    compiled=compiles,
                    **outcome._asdict(),
                )
                _check_finite(step.cell, record, epoch_ends=record.step % batches.steps_per_epoch == 0)
                observer.after_step(record)
                for callback in callbacks:
                    callback.on_train_step_end(context)
                stopped = stop.requested or context.get_stop_requested()
                if stopped:
                    break
            if stopped:
                break
            observer.after_epoch(epoch)
        for callback in callbacks:
            callback.on_train_end(context)
    return not stopped


class _Progress(dict[str, Any]):
    """What MindSpore's callbacks read of a run: a mapping whose entries are attributes too."""

    cur_step_num: int
    cur_epoch_num: int

    def __init__(self, **entries: Any) -> None:
        super().__init__(cur_step_num=0, cur_epoch_num=1, **entries)
        self.__dict__ = self


def _check_finite(cell: nn.Cell, record: StepRecord, epoch_ends: bool) -> None:
    """Raise DivergedError when the loss is not finite or, as an epoch ends, a trained parameter is not."""
    if record.skipped and record.loss_scale > 1:
        return
    what = ""
    if record.skipped:
        what = "gradients overflow float16 without any loss scale"
    elif not math.isfinite(record.loss):
        what = f"the loss is {record.loss}"
    elif epoch_ends:
        broken = [p.name for p in cell.trainable_params() if not np.isfinite(p.asnumpy()).all()]
        what = f"{broken[0]} is not finite" if broken else ""
    if what:
        raise DivergedError(
            f"step {record.step}: {what}, at learning rate {record.learning_rate:.2g}; lower the learning rates "
            "(a fifth is a good first try) or raise the warm-up share"
        )
