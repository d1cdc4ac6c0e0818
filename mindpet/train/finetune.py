"""Fine-tune a text classifier: from settings to a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn
from mindspore.common import dtype as mstype
from mindspore.train import CheckpointConfig
from rich.console import Console

from mindpet.data.batches import Batches, length_buckets
from mindpet.data.dataset import ClassificationData, Split, load_data
from mindpet.data.embedded import minilm_folder
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.graph import TrainableParamsCheckPoint, count_parameters, freeze_delta
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.baselines import probe_accuracy, tfidf_accuracy
from mindpet.train.evaluate import predict, run_batches
from mindpet.train.journal import Journal
from mindpet.train.loop import train
from mindpet.train.memory import parameter_megabytes, peak_megabytes
from mindpet.train.optimizer import build_optimizer, linear_schedule
from mindpet.train.progress import TrainingProgress, announce
from mindpet.train.run_folder import RunFolder
from mindpet.train.settings import FinetuneSettings
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
    losses and metrics on the same machine, bit for bit, as long as no dropout is used.

    Args:
        settings: What to do.
        console: Where progress is shown.

    Returns:
        What came out; see `Outcome`.

    Raises:
        InputError: A file, folder or setting cannot be used; nothing was written.
        DivergedError: The loss is no longer finite; the last good checkpoint stays.
    """
    _choose_device(settings)
    folder = RunFolder(settings.out, settings.overwrite)
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
    baselines = _baselines(settings, data, encoded, network, console)
    _attach(network, settings)
    return _run(settings, console, folder, data, encoded, network, baselines)


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


def _run(
    settings: FinetuneSettings,
    console: Console,
    folder: RunFolder,
    data: ClassificationData,
    encoded: _Encoded,
    network: BertForSequenceClassification,
    baselines: dict[str, float | None],
) -> Outcome:
    """Train, evaluate and write the run folder."""
    steps = settings.epochs * encoded.train.steps_per_epoch
    optimizer = build_optimizer(
        network,
        steps=steps,
        learning_rate=settings.learning_rate,
        head_learning_rate=settings.head_learning_rate,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        is_head=lambda name: name.startswith(f"{_HEAD}."),
    )
    folder.create(settings.model_dump(mode="json"), data.label_names)
    checkpoints = TrainableParamsCheckPoint(
        str(folder.checkpoints),
        config=CheckpointConfig(save_checkpoint_steps=encoded.train.steps_per_epoch, keep_checkpoint_max=2),
    )
    with TrainingProgress(console, steps, settings.epochs) as progress:
        journal = Journal(folder, progress, lambda: _accuracy(network, encoded.valid, data.valid))
        try:
            finished = train(
                TrainStep(network, optimizer, scale_loss=settings.dtype == "float16"),
                encoded.train,
                epochs=settings.epochs,
                learning_rates=linear_schedule(settings.learning_rate, steps, settings.warmup_ratio),
                callbacks=[checkpoints],
                observer=journal,
            )
        except DivergedError as error:
            kept = checkpoints.latest_ckpt_file_name or "none, as no epoch was finished"
            raise DivergedError(f"{error}; last good checkpoint: {kept}") from error
    folder.draw_losses(journal.losses, journal.accuracies)
    checkpoint = checkpoints.latest_ckpt_file_name or None
    if not finished:
        return Outcome(False, folder, checkpoint, {}, data, np.empty(0, int))
    predicted = predict(network, encoded.test)
    counts = count_parameters(network)
    metrics = {
        "method": settings.method,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "trainable_params": counts.trainable,
        "total_params": counts.total,
        "trainable_ratio": counts.ratio,
        "accuracy": float(np.mean(predicted == data.test.labels)),
        "valid_accuracy": journal.last_accuracy,
        **baselines,
        "static_memory_mb": parameter_megabytes([*network.get_parameters(), *optimizer.get_parameters()]),
        "peak_memory_mb": peak_megabytes(),
        **journal.timings(),
        "padding_share": encoded.train.padding_share,
    }
    folder.write_metrics(metrics)
    return Outcome(True, folder, checkpoint, metrics, data, predicted)


def _accuracy(network: nn.Cell, batches: Batches, split: Split) -> float:
    """Return the share of `split` that `network` labels rightly."""
    return float(np.mean(predict(network, batches) == split.labels))
