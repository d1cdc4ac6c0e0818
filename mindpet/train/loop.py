"""The training loop: plain steps in order, watched by MindSpore callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import nn
from mindspore.train import Callback, RunContext

from mindpet.data.batches import Batches
from mindpet.train.interrupt import catch_stop_signals
from mindpet.train.step import StepOutcome, TrainStep
from mindpet.utils.exceptions import DivergedError

__all__ = ["StepRecord", "train"]


@dataclass(frozen=True)
class StepRecord:
    """What is known of a step once it is done.

    Attributes:
        step: Its number from 1 on over all epochs.
        epoch: The number of its epoch from 1 on.
        outcome: Loss and loss scale.
        learning_rate: That of the step.
        seconds: How long the step took.
        compiled: Whether the graph was compiled for it, because its shape was new.
        texts: Number of texts in it.
    """

    step: int
    epoch: int
    outcome: StepOutcome
    learning_rate: float
    seconds: float
    compiled: bool
    texts: int


def train(
    step: TrainStep,
    batches: Batches,
    *,
    epochs: int,
    learning_rates: Sequence[float],
    callbacks: Sequence[Callback],
    before_compile: Callable[[tuple[int, ...]], None],
    after_step: Callable[[StepRecord], None],
    after_epoch: Callable[[int], None],
) -> bool:
    """Run `epochs` passes over `batches`.

    Args:
        step: What a step does.
        batches: The training batches.
        epochs: Number of passes.
        learning_rates: That of each step, for the records.
        callbacks: MindSpore callbacks such as `TrainableParamsCheckPoint`; their `step_end` and `end` are called.
        before_compile: Called with the batch's shape before a step that compiles a graph.
        after_step: Called with each step's record.
        after_epoch: Called with the number of each finished epoch.

    Returns:
        Whether all passes were made; False when Ctrl-C or SIGTERM asked for an end.

    Raises:
        DivergedError: The loss or a parameter is not finite; checkpoints made before it are whole.
    """
    progress = _Progress(train_network=step.cell, batch_num=batches.steps_per_epoch)
    context = RunContext(progress)
    shapes: set[tuple[int, ...]] = set()
    with catch_stop_signals() as stop:
        for epoch in range(epochs):
            for batch in batches.epoch(epoch):
                shape = batch.input_ids.shape
                compiles = shape not in shapes
                if compiles:
                    before_compile(shape)
                    shapes.add(shape)
                start = time.perf_counter()
                outcome = step(batch)
                seconds = time.perf_counter() - start
                progress.cur_step_num += 1
                progress.cur_epoch_num = epoch + 1
                number = progress.cur_step_num
                rate = learning_rates[number - 1]
                _check_finite(step.cell, outcome, number, rate, parameters=number % progress.batch_num == 0)
                after_step(
                    StepRecord(number, epoch + 1, outcome, rate, seconds, compiles, int(np.sum(batch.indices >= 0)))
                )
                for callback in callbacks:
                    callback.step_end(context)
                if stop.requested:
                    break
            if stop.requested:
                break
            after_epoch(epoch + 1)
        for callback in callbacks:
            callback.end(context)
    return not stop.requested


class _Progress(dict[str, Any]):
    """What MindSpore's callbacks read of a run: a mapping whose entries are attributes too."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(cur_step_num=0, cur_epoch_num=1, **entries)
        self.__dict__ = self


def _check_finite(cell: nn.Cell, outcome: StepOutcome, step: int, rate: float, *, parameters: bool) -> None:
    """Raise DivergedError when the loss is not finite or, where asked, a trained parameter is not."""
    if outcome.skipped and outcome.loss_scale > 1:
        return
    what = ""
    if not math.isfinite(outcome.loss) or outcome.skipped:
        what = f"the loss is {outcome.loss} at loss scale {outcome.loss_scale:g}"
    elif parameters:
        broken = [p.name for p in cell.trainable_params() if not np.isfinite(p.asnumpy()).all()]
        what = f"{broken[0]} is not finite" if broken else ""
    if what:
        raise DivergedError(
            f"step {step}: {what}, with learning rate {rate:.2g}; lower the learning rates (a fifth is a good first "
            "try), or raise the warm-up share"
        )
