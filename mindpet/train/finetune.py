"""Fine-tune a text classifier or a language model: from settings to a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn
from mindspore.train import Callback, CheckpointConfig, RunContext
from rich.console import Console

from mindpet import kernels
from mindpet.data.batches import RowBatches
from mindpet.graph import ParameterCount, TrainableParamsCheckPoint, count_parameters
from mindpet.train.cluster import require_devices, with_devices_of_the_cluster
from mindpet.train.journal import Follower, Journal
from mindpet.train.kept_graphs import graphs_folder
from mindpet.train.loop import Observer, Position, train
from mindpet.train.memory import parameter_megabytes, peak_megabytes
from mindpet.train.optimizer import build_optimizer, linear_schedule
from mindpet.train.prepare import Job, is_head, prepare
from mindpet.train.progress import TrainingProgress
from mindpet.train.ranks import Ranks
from mindpet.train.resume import SavedRun, put_back, write_run
from mindpet.train.run_folder import CHECKPOINTS_KEPT, RunFolder
from mindpet.train.settings import FinetuneSettings, settings_of_the_run
from mindpet.train.step import TrainStep
from mindpet.train.task import Task, Tested
from mindpet.train.tensorboard import require_tensorboard, write_scalars
from mindpet.tuning.accelerate import decelerate
from mindpet.tuning.exchange.save import save_adapter
from mindpet.tuning.state import state_of
from mindpet.utils.exceptions import DivergedError

__all__ = ["Outcome", "finetune"]

_NOT_IN_THE_CARD = {
    *("method", "trainable_params", "total_params", "trainable_ratio", "static_memory_mb", "peak_memory_mb"),
    *("step_ms_median", "compile_seconds", "waiting_share", "skipped_steps", "padding_share"),
}


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        finished: False when Ctrl-C or SIGTERM ended it early.
        folder: The run folder.
        checkpoint: The newest checkpoint of the trained parameters, or None when there is none yet.
        adapter: The folder of the adapter; None when the run did not finish, or trained everything.
        metrics: What `metrics.json` holds; empty when the run did not finish.
        task: Data and network.
        predicted: The class given to each test text; empty where the task has no classes.
        ranks: The processes of the run; what only the first one knows is empty on the others.
    """

    finished: bool
    folder: RunFolder
    checkpoint: str | None
    adapter: Path | None
    metrics: dict[str, Any]
    task: Task
    predicted: np.ndarray
    ranks: Ranks


class _EpochCheckpoint(TrainableParamsCheckPoint):
    """Saves as each epoch ends, wherever in an epoch the loop began."""

    def step_end(self, run_context: RunContext) -> None:
        progress = run_context.original_args()
        if progress.cur_step_num % progress.batch_num == 0:
            super().step_end(run_context)


def finetune(settings: FinetuneSettings, console: Console) -> Outcome:
    """Fine-tune a network on texts and write the run folder `settings.out`.

    Everything that the settings name is read and checked before the folder is made. The same settings give the same
    losses and metrics on the same machine, bit for bit; so does a run that is ended or killed and then resumed (on a
    CPU with dropout too).

    With several devices each of the processes that were started together, by `mindpet.train.launch` or `msrun`, calls
    this function; the first rank alone prints and writes.

    Args:
        settings: What to do. With `resume`, the settings with which the run in `out` was started are taken.
        console: Where progress is shown.

    Returns:
        What came out; see `Outcome`.

    Raises:
        InputError: A file, folder or setting cannot be used; nothing was written.
        DivergedError: The loss is no longer finite; the last good checkpoint stays.
    """
    settings = with_devices_of_the_cluster(settings)
    folder = RunFolder(settings.out, settings.overwrite, settings.resume)
    if settings.resume and folder.settings.exists():
        settings = settings_of_the_run(settings, folder.settings)
    require_devices(settings)
    if settings.report_to:
        require_tensorboard()
    before = kernels.kernels_in_use()
    try:
        outcome = _run(prepare(settings, folder, console))
    finally:
        kernels.use_kernels(before)
    outcome.ranks.meet()
    return outcome


def _run(job: Job) -> Outcome:
    """Train and evaluate; the first rank writes the run folder."""
    settings, folder, ranks = job.settings, job.folder, job.ranks
    counts = count_parameters(job.network)
    optimizer = build_optimizer(
        job.network,
        steps=_all_steps(job),
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        is_head=is_head,
    )
    step = TrainStep(
        job.network,
        optimizer,
        scale_loss=settings.dtype == "float16",
        seed=settings.seed,
        ranks=ranks,
        loss=job.task.loss,
        graphs=graphs_folder(),
    )
    if job.saved is not None:
        put_back(job.saved.tensors, step.state(), folder.state)
    journal = None
    if ranks.is_first:
        finished, journal = _train_and_write(job, step)
    else:
        finished = _train(job, step, Follower(lambda: job.task.measure_valid(ranks)))
    if not finished:
        return Outcome(False, folder, folder.newest_checkpoint(), None, {}, job.task, np.empty(0, int), ranks)
    tested = job.task.test(ranks)
    decelerate(job.network)  # whoever loads the adapter compares its outputs with those of plain cells
    metrics, adapter = {}, None
    if journal is not None:
        metrics = _metrics(job, counts, optimizer, journal, tested)
        adapter = _save_adapter(job, metrics)
        folder.write_metrics(metrics)
    return Outcome(True, folder, folder.newest_checkpoint(), adapter, metrics, job.task, tested.predicted, ranks)


def _train_and_write(job: Job, step: TrainStep) -> tuple[bool, Journal]:
    """Train as the first rank, which keeps the run folder; tell whether all passes were made."""
    folder, metric = job.folder, job.task.metric
    earlier = _open_folder(job)
    done = 0 if job.saved is None else _steps_before(job.saved.position, job.encoded.train)
    progress = TrainingProgress(job.console, _all_steps(job), job.settings.epochs, metric.name, done)
    reporting = write_scalars(folder.scalars, earlier) if job.settings.report_to else nullcontext()
    with progress, reporting as report:
        journal = Journal(
            folder,
            progress,
            metric,
            measure=lambda: job.task.measure_valid(job.ranks),
            save_state=lambda position: write_run(folder.state, _state(job, step, position)),
            earlier=earlier,
            report=report,
        )
        try:
            finished = _train(job, step, journal, _checkpoints(folder))
        except DivergedError as error:
            kept = folder.newest_checkpoint() or "none, as no epoch was finished"
            raise DivergedError(f"{error}; last good checkpoint: {kept}") from error
    folder.draw_losses(journal.losses, metric, journal.measured)
    return finished, journal


def _train(job: Job, step: TrainStep, observer: Observer, *callbacks: Callback) -> bool:
    """Take the steps that are still to be taken; tell whether all passes were made."""
    settings = job.settings
    return train(
        step,
        job.encoded.train,
        epochs=settings.epochs,
        learning_rates=linear_schedule(settings.learning_rate, _all_steps(job), settings.warmup_ratio),
        callbacks=callbacks,
        observer=observer,
        start=Position() if job.saved is None else job.saved.position,
        save_steps=settings.save_steps,
        ranks=job.ranks,
    )


def _open_folder(job: Job) -> list[dict[str, Any]]:
    """Make the folder, or set it back to the saved moment; return the log's entries up to there."""
    settings, folder, saved, console = job.settings, job.folder, job.saved, job.console
    if saved is None:
        if settings.resume:
            console.print(f"nothing to resume in {settings.out}: no state was saved there; starting from the beginning")
        folder.create(settings.of_the_run(), job.task.label_names)
        return []
    done = _steps_before(saved.position, job.encoded.train)
    entries = folder.reopen(settings.of_the_run(), log_lines=done + saved.position.epoch - 1)
    if saved.position.epoch > settings.epochs:
        console.print(f"{settings.out}: all {done} steps are done; only the evaluation is made")
    else:
        console.print(f"resuming {settings.out} in epoch {saved.position.epoch} after {done} steps")
    return entries


def _all_steps(job: Job) -> int:
    return job.settings.epochs * job.encoded.train.steps_per_epoch


def _steps_before(position: Position, batches: RowBatches[Any]) -> int:
    return (position.epoch - 1) * batches.steps_per_epoch + position.step


def _checkpoints(folder: RunFolder) -> TrainableParamsCheckPoint:
    config = CheckpointConfig(save_checkpoint_steps=1, keep_checkpoint_max=CHECKPOINTS_KEPT)
    return _EpochCheckpoint(str(folder.checkpoints), config=config)


def _state(job: Job, step: TrainStep, position: Position) -> SavedRun:
    """Return what it takes to go on from `position`."""
    tensors = {name: parameter.asnumpy() for name, parameter in step.state().items()}
    return SavedRun(job.origin, position, job.baselines, _peak_megabytes(job), tensors)


def _peak_megabytes(job: Job) -> float:
    """Return the largest size of this process and of those of the run's earlier parts."""
    return max(peak_megabytes(), job.saved.peak_memory_mb if job.saved else 0.0)


def _metrics(
    job: Job, counts: ParameterCount, optimizer: nn.Optimizer, journal: Journal, tested: Tested
) -> dict[str, Any]:
    """Return what `metrics.json` holds."""
    return {
        "method": job.settings.method,
        "seed": job.settings.seed,
        "epochs": job.settings.epochs,
        "trainable_params": counts.trainable,
        "total_params": counts.total,
        "trainable_ratio": counts.ratio,
        **tested.figures,
        job.task.metric.key: journal.last_measured,
        **job.baselines,
        "static_memory_mb": parameter_megabytes([*job.network.get_parameters(), *optimizer.get_parameters()]),
        "peak_memory_mb": _peak_megabytes(job),
        **journal.timings(),
        "padding_share": job.encoded.train.padding_share,
    }


def _save_adapter(job: Job, metrics: Mapping[str, Any]) -> Path | None:
    """Save what was trained with its probe and model card, and return the folder; None after full fine-tuning."""
    if state_of(job.network) is None:
        return None
    named = {name: value for name, value in metrics.items() if name not in _NOT_IN_THE_CARD}
    base = job.task.embedded_model if job.settings.model is None else job.settings.model.resolve().name
    save_adapter(job.network, job.folder.adapter, base=base, data=job.task.data_name, metrics=named, overwrite=True)
    return job.folder.adapter
