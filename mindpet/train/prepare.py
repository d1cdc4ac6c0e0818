"""Everything that a fine-tuning run needs, read and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import mindspore
from mindspore import Tensor, nn
from mindspore.common import dtype as mstype
from rich.console import Console

from mindpet.data.batches import Batches, length_buckets
from mindpet.data.dataset import ClassificationData, load_data
from mindpet.data.embedded import minilm_folder
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.baselines import probe_accuracy, tfidf_accuracy
from mindpet.train.evaluate import run_batches
from mindpet.train.methods import HEAD
from mindpet.train.progress import announce
from mindpet.train.ranks import Ranks, join_ranks
from mindpet.train.resume import Origin, SavedRun, fingerprint_data, fingerprint_parameters, read_run
from mindpet.train.run_folder import RunFolder
from mindpet.train.settings import FinetuneSettings
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.environment import choose_device
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import STATE_MARK

__all__ = ["Job", "is_head", "prepare"]

_DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


@dataclass(frozen=True)
class Encoded:
    """The batches of each split."""

    train: Batches
    valid: Batches
    test: Batches


@dataclass(frozen=True)
class Job:
    """A run that is about to begin or to go on, everything read and checked.

    Attributes:
        settings: What to do.
        folder: Where the result goes.
        data: The texts and their labels.
        encoded: The batches of each split.
        network: With the method attached.
        ranks: The processes of the run.
        console: Where this process shows how the run goes on.
        origin: What the run is made from.
        baselines: The baselines' accuracies by their names in the metrics.
        saved: What an earlier part of the run has left, or None.
    """

    settings: FinetuneSettings
    folder: RunFolder
    data: ClassificationData
    encoded: Encoded
    network: BertForSequenceClassification
    ranks: Ranks
    console: Console
    origin: Origin
    baselines: dict[str, float | None]
    saved: SavedRun | None


class _Features(nn.Cell):
    """The encoder's pooled output, which the frozen-encoder baseline sees."""

    def __init__(self, network: BertForSequenceClassification) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.network.features(input_ids, attention_mask, token_type_ids)


def prepare(settings: FinetuneSettings, folder: RunFolder, console: Console) -> Job:
    """Read and check everything that the run needs, and attach the method to the network.

    With several devices the processes meet here, and only the first one goes on to print.

    Raises:
        InputError: A file or setting cannot be used, or differs from what the run to be resumed was made from or from
            what the other processes have read.
    """
    _choose_device(settings)
    ranks = join_ranks(settings.devices)
    if not ranks.is_first:
        console = Console(quiet=True)
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
    ranks.require_same(repr((origin, saved.position if saved else None)))
    baselines = _baselines(settings, data, encoded, network, ranks, console) if saved is None else saved.baselines
    _attach(network, settings)
    return Job(settings, folder, data, encoded, network, ranks, console, origin, baselines, saved)


def _origin(
    settings: FinetuneSettings, data: ClassificationData, encoded: Encoded, network: BertForSequenceClassification
) -> Origin:
    """Return what tells this run from another one. The head is new or trained, and so no part of the base model."""
    batches = chain(encoded.train.epoch(0), encoded.valid.ordered(), encoded.test.ordered())
    base = [parameter for parameter in network.get_parameters() if not is_head(parameter.name)]
    return Origin(settings.that_decide(), fingerprint_data(data.label_names, batches), fingerprint_parameters(base))


def is_head(name: str) -> bool:
    """Tell whether a parameter of this name belongs to the classification head."""
    return name.startswith(f"{HEAD}.")


def _choose_device(settings: FinetuneSettings) -> None:
    """Set graph mode on the device, or say why it cannot be used."""
    if settings.device == "CPU" and settings.dtype == "bfloat16":
        raise InputError(
            "dtype: MindSpore has no bfloat16 matrix product on a CPU; choose float32 or float16, or --device Ascend"
        )
    choose_device(settings.device)
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def _encode(
    data: ClassificationData, tokenizer: Tokenizer, network: BertForSequenceClassification, settings: FinetuneSettings
) -> Encoded:
    """Turn the texts of each split into batches; all splits have the same few widths, so that graphs are shared."""
    if tokenizer.vocab_size > network.config.vocab_size:
        raise InputError(
            f"{settings.model}: the tokenizer knows {tokenizer.vocab_size} tokens, but the network's embedding holds "
            f"{network.config.vocab_size}; take tokenizer and model from the same folder"
        )
    longest = min(settings.max_length, network.config.max_position_embeddings)
    if longest < 3:
        raise InputError(
            f"{settings.model}: the network takes {longest} tokens, and [CLS], a token and [SEP] are 3; take another"
        )
    splits = (data.train, data.valid, data.test)
    encoded = [tokenizer.encode(split.texts, longest) for split in splits]
    widths = length_buckets([len(ids) for split in encoded for ids in split], longest, settings.batch_size)
    return Encoded(
        *(
            Batches(ids, split.labels, settings.batch_size, widths, tokenizer.pad_id, settings.seed)
            for ids, split in zip(encoded, splits, strict=True)
        )
    )


def _baselines(
    settings: FinetuneSettings,
    data: ClassificationData,
    encoded: Encoded,
    network: BertForSequenceClassification,
    ranks: Ranks,
    console: Console,
) -> dict[str, float | None]:
    """Return the accuracies of the two baselines by their names in the metrics; None where none are wanted.

    The ranks share the work of the encoder. Each fits both regressions, as none may wait long for another one.
    """
    if not settings.baselines:
        return {"baseline_accuracy": None, "probe_accuracy": None}
    with announce(console, "baseline: TF-IDF with logistic regression"):
        tfidf = tfidf_accuracy(data)
    with announce(console, "baseline: logistic regression on the frozen encoder"):
        features = _Features(network)
        train_features, valid_features, test_features = (
            run_batches(features, batches, ranks) for batches in (encoded.train, encoded.valid, encoded.test)
        )
        probe = probe_accuracy(data, train_features, valid_features, test_features)
    return {"baseline_accuracy": tfidf, "probe_accuracy": probe}


def _attach(network: BertForSequenceClassification, settings: FinetuneSettings) -> None:
    """Make the parameters of the method and the head trainable, and store the frozen ones in the run's dtype."""
    dtype = _DTYPES[settings.dtype]
    config = settings.peft_config()
    if config is not None:
        get_peft_model(network, config, compute_dtype=dtype)
    for parameter in network.get_parameters():
        frozen = not parameter.requires_grad and STATE_MARK not in parameter.name
        if frozen and parameter.dtype == mstype.float32:
            parameter.set_dtype(dtype)
