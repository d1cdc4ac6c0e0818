"""Fine-tune a text classifier: from settings to a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn
from mindspore.common import dtype as mstype
from mindspore.train import CheckpointConfig, RunContext
from rich.console import Console

from mindpet.data.batches import Batches, length_buckets
from mindpet.data.dataset import ClassificationData, Split, load_data
from mindpet.data.embedded import minilm_folder
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.graph import ParameterCount, TrainableParamsCheckPoint, count_parameters, freeze_delta
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.baselines import probe_accuracy, tfidf_accuracy
from mindpet.train.evaluate import predict, run_batches
from mindpet.train.journal import Journal
from mindpet.train.loop import Position, train
from mindpet.train.memory import parameter_megabytes, peak_megabytes
from mindpet.train.optimizer import build_optimizer, linear_schedule
from mindpet.train.progress import TrainingProgress, announce
from mindpet.train.resume import (
    Origin,
    SavedRun,
    fingerprint_data,
    fingerprint_parameters,
    put_back,
    read_run,
    write_run,
)
from mindpet.train.run_folder import CHECKPOINTS_KEPT, RunFolder
from mindpet.train.settings import FinetuneSettings, settings_of_the_run
from mindpet.train.step import TrainStep
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.config import LoraConfig
from mindpet.utils.exceptions import DivergedError, InputError

__all__ = ["Outcome", "finetune"]

_HEAD = "classifier"
_DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


@dataclass(frozen=True)
class Outcome:
    """What a run ended with.

    Attributes:
        finished: False when Ctrl-C or SIGTERM ended it early.
        folder: The run folder.
        checkpoint: The newest checkpoint of the trained parameters, or None when there is none yet.
        metrics: What `metrics.json` holds; empty when the run did not finish.
        data: The texts and their labels.
        predicted: The label given to each test text.
    """

    finished: bool
    folder: RunFolder
    checkpoint: str | None
    metrics: dict[str, Any]
    data: ClassificationData
    predicted: np.ndarray


@dataclass(frozen=True)
class _Encoded:
    """The batches of each split."""

    train: Batches
    valid: Batches
    test: Batches


@dataclass(frozen=True)
class _Job:
    """A run that is about to begin or to go on, everything read and checked.

    Attributes:
        settings: What to do.
        folder: Where the result goes.
        data: The texts and their labels.
        encoded: The batches of each split.
        network: With the method attached.
        origin: What the run is made from.
        baselines: The baselines' accuracies by their names in the metrics.
        saved: What an earlier part of the run has left, or None.
    """

    settings: FinetuneSettings
    folder: RunFolder
    data: ClassificationData
    encoded: _Encoded
    network: BertForSequenceClassification
    origin: Origin
    baselines: dict[str, float | None]
    saved: SavedRun | None


class _EpochCheckpoint(TrainableParamsCheckPoint):
    """Saves as each epoch ends, wherever in an epoch the loop began."""

    def step_end(self, run_context: RunContext) -> None:
        progress = run_context.original_args()
        if progress.cur_step_num % progress.batch_num == 0:
            super().step_end(run_context)


class _Features(nn.Cell):
    """The encoder's pooled output, which the frozen-encoder baseline sees."""

    def __init__(self, network: BertForSequenceClassification) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.network.features(input_ids, attention_mask, token_type_ids)


def finetune(settings: FinetuneSettings, console: Console) -> Outcome:
    """Fine-tune a BERT on labelled texts and write the run folder `settings.out`.

    Everything that the settings name is read and checked before the folder is made. The same settings give the same
    losses and metrics on the same machine, bit for bit; so does a run that is ended or killed and then resumed (on a
    CPU with dropout too).

    Args:
        settings: What to do. With `resume`, the settings with which the run in `out` was started are taken.
        console: Where progress is shown.

    Returns:
        What came out; see `Outcome`.

    Raises:
        InputError: A file, folder or setting cannot be used; nothing was written.
        DivergedError: The loss is no longer finite; the last good checkpoint stays.
    """
    folder = RunFolder(settings.out, settings.overwrite, settings.resume)
    if settings.resume and folder.settings.exists():
        settings = settings_of_the_run(settings, folder.settings)
    _choose_device(settings)
    return _run(_prepare(settings, folder, console), console)


def _prepare(settings: FinetuneSettings, folder: RunFolder, console: Console) -> _Job:
    """Read and check everything that the run needs."""
    saved = read_run(folder.state) if settings.resume and folder.state.exists() else None
    with announce(console, "reading the data"):
        data = load_data(settings.data, settings.seed, console.print)
    mindspore.set_seed(settings.seed)
    with announce(console, "reading the model"):
        source = settings.model or minilm_folder(console.print)
        tokenizer = load_tokenizer(source)
        network = BertForSequenceClassification.from_pretrained(
            source,
            num_labels=len(data.label_names),
            pooling=settings.pooling,
            dropout=settings.dropout,
            compute_dtype=_DTYPES[settings.dtype],
        )
    encoded = _encode(data, tokenizer, network, settings)
    origin = _origin(settings, data, encoded, network)
    if saved is not None:
        saved.require_origin(origin, folder.state)
    baselines = _baselines(settings, data, encoded, network, console) if saved is None else saved.baselines
    _attach(network, settings)
    return _Job(settings, folder, data, encoded, network, origin, baselines, saved)


def _origin(
    settings: FinetuneSettings, data: ClassificationData, encoded: _Encoded, network: BertForSequenceClassification
) -> Origin:
    """Return what tells this run from another one. The head is new or trained, and so no part of the base model."""
    batches = chain(encoded.train.epoch(0), encoded.valid.ordered(), encoded.test.ordered())
    base = [parameter for parameter in network.get_parameters() if not _is_head(parameter.name)]
    return Origin(settings.that_decide(), fingerprint_data(data.label_names, batches), fingerprint_parameters(base))


def _is_head(name: str) -> bool:
    return name.startswith(f"{_HEAD}.")


def _choose_device(settings: FinetuneSettings) -> None:
    """Set graph mode on the device, or say why it cannot be used."""
    if settings.device == "CPU" and settings.dtype == "bfloat16":
        raise InputError(
            "dtype: MindSpore has no bfloat16 matrix product on a CPU; choose float32 or float16, or --device Ascend"
        )
    try:
        if mindspore.get_context("device_target") != settings.device:
            mindspore.set_device(settings.device)
        mindspore.set_context(mode=mindspore.GRAPH_MODE)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"device: {settings.device} cannot be used here ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    """Return the first line that says something; MindSpore's messages go on for pages."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _encode(
    data: ClassificationData, tokenizer: Tokenizer, network: BertForSequenceClassification, settings: FinetuneSettings
) -> _Encoded:
    """Turn the texts of each split into batches; all splits have the same few widths, so that graphs are shared."""
    if tokenizer.vocab_size > network.config.vocab_size:
        raise InputError(
            f"{settings.model}: the tokenizer knows {tokenizer.vocab_size} tokens, but the network's embedding holds "
            f"{network.config.vocab_size}; take tokenizer and model from the same folder"
        )
    longest = min(settings.max_length, network.config.max_position_embeddings)
    splits = (data.train, data.valid, data.test)
    encoded = [tokenizer.encode(split.texts, longest) for split in splits]
    widths = length_buckets([len(ids) for split in encoded for ids in split], longest, settings.batch_size)
    return _Encoded(
        *(
            Batches(ids, split.labels, settings.batch_size, widths, tokenizer.pad_id, settings.seed)
            for ids, split in zip(encoded, splits, strict=True)
        )
    )


def _baselines(
    settings: FinetuneSettings,
    data: ClassificationData,
    encoded: _Encoded,
    network: BertForSequenceClassification,
    console: Console,
) -> dict[str, float | None]:
    """Return the accuracies of the two baselines by their names in the metrics; None where none are wanted."""
    if not settings.baselines:
        return {"baseline_accuracy": None, "probe_accuracy": None}
    with announce(console, "baseline: TF-IDF with logistic regression"):
        tfidf = tfidf_accuracy(data)
    with announce(console, "baseline: logistic regression on the frozen encoder"):
        features = _Features(network)
        train_features, valid_features, test_features = (
            run_batches(features, batches) for batches in (encoded.train, encoded.valid, encoded.test)
        )
        probe = probe_accuracy(data, train_features, valid_features, test_features)
    return {"baseline_accuracy": tfidf, "probe_accuracy": probe}


def _attach(network: BertForSequenceClassification, settings: FinetuneSettings) -> None:
    """Make the parameters of the method and the head trainable, and store the frozen ones in the run's dtype."""
    dtype = _DTYPES[settings.dtype]
    if settings.method == "lora":
        config = LoraConfig(
            r=settings.r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=settings.target_modules,
            modules_to_save=(_HEAD,),
        )
        get_peft_model(network, config, compute_dtype=dtype)
    elif settings.method == "bitfit":
        freeze_delta(network, "bitfit", exclude=[f"{_HEAD}.*"])
    for parameter in network.get_parameters():
        if not parameter.requires_grad and parameter.dtype == mstype.float32:
            parameter.set_dtype(dtype)


def _run(job: _Job, console: Console) -> Outcome:
    """Train, evaluate and write the run folder."""
    settings, folder, network, batches = job.settings, job.folder, job.network, job.encoded.train
    counts = count_parameters(network)
    steps = settings.epochs * batches.steps_per_epoch
    optimizer = build_optimizer(
        network,
        steps=steps,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        is_head=_is_head,
    )
    step = TrainStep(network, optimizer, scale_loss=settings.dtype == "float16", seed=settings.seed)
    earlier = _open_folder(job, step, console)
    start = Position() if job.saved is None else job.saved.position
    with TrainingProgress(console, steps, settings.epochs, done=_steps_before(start, batches)) as progress:
        journal = Journal(
            folder,
            progress,
            measure=lambda: _accuracy(network, job.encoded.valid, job.data.valid),
            save_state=lambda position: write_run(folder.state, _state(job, step, position)),
            earlier=earlier,
        )
        try:
            finished = train(
                step,
                batches,
                epochs=settings.epochs,
                learning_rates=linear_schedule(settings.learning_rate, steps, settings.warmup_ratio),
                callbacks=[_checkpoints(folder)],
                observer=journal,
                start=start,
                save_steps=settings.save_steps,
            )
        except DivergedError as error:
            kept = folder.newest_checkpoint() or "none, as no epoch was finished"
            raise DivergedError(f"{error}; last good checkpoint: {kept}") from error
    folder.draw_losses(journal.losses, journal.accuracies)
    if not finished:
        return Outcome(False, folder, folder.newest_checkpoint(), {}, job.data, np.empty(0, int))
    predicted = predict(network, job.encoded.test)
    metrics = _metrics(job, counts, optimizer, journal, predicted)
    folder.write_metrics(metrics)
    return Outcome(True, folder, folder.newest_checkpoint(), metrics, job.data, predicted)


def _open_folder(job: _Job, step: TrainStep, console: Console) -> list[dict[str, Any]]:
    """Make the folder, or set it and the step back to the saved moment; return the log's entries up to there."""
    settings, folder, saved = job.settings, job.folder, job.saved
    if saved is None:
        if settings.resume:
            console.print(f"nothing to resume in {settings.out}: no state was saved there; starting from the beginning")
        folder.create(settings.of_the_run(), job.data.label_names)
        return []
    put_back(saved.tensors, step.state(), folder.state)
    done = _steps_before(saved.position, job.encoded.train)
    entries = folder.reopen(settings.of_the_run(), log_lines=done + saved.position.epoch - 1)
    if saved.position.epoch > settings.epochs:
        console.print(f"{settings.out}: all {done} steps are done; only the evaluation is made")
    else:
        console.print(f"resuming {settings.out} in epoch {saved.position.epoch} after {done} steps")
    return entries


def _steps_before(position: Position, batches: Batches) -> int:
    return (position.epoch - 1) * batches.steps_per_epoch + position.step


def _checkpoints(folder: RunFolder) -> TrainableParamsCheckPoint:
    config = CheckpointConfig(save_checkpoint_steps=1, keep_checkpoint_max=CHECKPOINTS_KEPT)
    return _EpochCheckpoint(str(folder.checkpoints), config=config)


def _state(job: _Job, step: TrainStep, position: Position) -> SavedRun:
    """Return what it takes to go on from `position`."""
    tensors = {name: parameter.asnumpy() for name, parameter in step.state().items()}
    return SavedRun(job.origin, position, job.baselines, _peak_megabytes(job), tensors)


def _peak_megabytes(job: _Job) -> float:
    """Return the largest size of this process and of those of the run's earlier parts."""
    return max(peak_megabytes(), job.saved.peak_memory_mb if job.saved else 0.0)


def _metrics(
    job: _Job, counts: ParameterCount, optimizer: nn.Optimizer, journal: Journal, predicted: np.ndarray
) -> dict[str, Any]:
    """Return what `metrics.json` holds."""
    return {
        "method": job.settings.method,
        "seed": job.settings.seed,
        "epochs": job.settings.epochs,
        "trainable_params": counts.trainable,
        "total_params": counts.total,
        "trainable_ratio": counts.ratio,
        "accuracy": float(np.mean(predicted == job.data.test.labels)),
        "valid_accuracy": journal.last_accuracy,
        **job.baselines,
        "static_memory_mb": parameter_megabytes([*job.network.get_parameters(), *optimizer.get_parameters()]),
        "peak_memory_mb": _peak_megabytes(job),
        **journal.timings(),
        "padding_share": job.encoded.train.padding_share,
    }


def _accuracy(network: nn.Cell, batches: Batches, split: Split) -> float:
    """Return the share of `split` that `network` labels rightly."""
    return float(np.mean(predict(network, batches) == split.labels))
