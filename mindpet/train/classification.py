"""Text classification: a BERT with a new head, judged by its accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from mindspore import Tensor, nn
from mindspore.common import dtype as mstype
from rich.console import Console

from mindpet.data.batches import Batches, length_buckets
from mindpet.data.dataset import ClassificationData, load_data
from mindpet.data.embedded import minilm_folder
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.baselines import probe_accuracy, tfidf_accuracy
from mindpet.train.evaluate import predict, run_batches
from mindpet.train.losses import ClassificationLoss, RDropClassificationLoss
from mindpet.train.progress import announce
from mindpet.train.ranks import Ranks
from mindpet.train.settings import FinetuneSettings
from mindpet.train.task import CLASSIFICATION, Encoded, Metric, Tested, require_vocabulary, room_for_texts
from mindpet.utils.exceptions import InputError

__all__ = ["ClassificationTask", "open_classification"]


@dataclass(frozen=True)
class ClassificationTask:
    """Labelled texts and a network with a head for their classes; see `mindpet.train.task.Task`.

    Attributes:
        settings: What to do.
        data: The texts and their labels.
        encoded: The batches of each split.
        network: Gives logits (batch, classes).
    """

    name: ClassVar[str] = CLASSIFICATION
    metric: ClassVar[Metric] = Metric("accuracy", highest=1)
    embedded_model: ClassVar[str] = "sentence-transformers/all-MiniLM-L6-v2"

    settings: FinetuneSettings
    data: ClassificationData
    encoded: Encoded[Batches]
    network: BertForSequenceClassification

    @property
    def data_name(self) -> str:
        """What to call the data."""
        return self.data.name

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.data.label_names

    @property
    def loss(self) -> Callable[[nn.Cell], nn.Cell]:
        """The cross entropy, with R-Drop where the settings ask for it."""
        alpha = self.settings.r_drop
        return partial(RDropClassificationLoss, alpha=alpha) if alpha else ClassificationLoss

    def measure_base(self, ranks: Ranks, console: Console) -> dict[str, float | None]:
        """Return the accuracies of the two baselines by their names in the metrics; None where none are wanted.

        The ranks share the work of the encoder. Each fits both regressions, as none may wait long for another one.
        """
        if not self.settings.baselines:
            return {"baseline_accuracy": None, "probe_accuracy": None}
        with announce(console, "baseline: TF-IDF with logistic regression"):
            tfidf = tfidf_accuracy(self.data)
        with announce(console, "baseline: logistic regression on the frozen encoder"):
            features = _Features(self.network)
            splits = (self.encoded.train, self.encoded.valid, self.encoded.test)
            probe = probe_accuracy(self.data, *(run_batches(features, batches, ranks) for batches in splits))
        return {"baseline_accuracy": tfidf, "probe_accuracy": probe}

    def start_method(self) -> None:
        """Start as the method does by itself."""

    def measure_valid(self, ranks: Ranks) -> float:
        """Return the share of the validation texts that the network labels rightly."""
        return float(np.mean(predict(self.network, self.encoded.valid, ranks) == self.data.valid.labels))

    def test(self, ranks: Ranks) -> Tested:
        """Return the share of the test texts that the network labels rightly, and its labels."""
        predicted = predict(self.network, self.encoded.test, ranks)
        return Tested({"accuracy": float(np.mean(predicted == self.data.test.labels))}, predicted)


class _Features(nn.Cell):
    """The encoder's pooled output, which the frozen-encoder baseline sees."""

    def __init__(self, network: BertForSequenceClassification) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.network.features(input_ids, attention_mask, token_type_ids)


def open_classification(settings: FinetuneSettings, console: Console) -> ClassificationTask:
    """Read the texts and the network that the settings name.

    Raises:
        InputError: A file cannot be used, or the two do not fit together.
    """
    with announce(console, "reading the data"):
        data = load_data(settings.data, settings.seed, console.print)
    with announce(console, "reading the model"):
        source = settings.model or minilm_folder(console.print)
        tokenizer = load_tokenizer(source)
        network = BertForSequenceClassification.from_pretrained(
            source,
            num_labels=len(data.label_names),
            pooling=settings.pooling,
            dropout=settings.dropout,
            compute_dtype=getattr(mstype, settings.dtype),
        )
    return ClassificationTask(settings, data, _encode(data, tokenizer, network, settings), network)


def _encode(
    data: ClassificationData, tokenizer: Tokenizer, network: BertForSequenceClassification, settings: FinetuneSettings
) -> Encoded[Batches]:
    """Turn the texts of each split into batches; all splits have the same few widths, so that graphs are shared."""
    require_vocabulary(settings.model, tokenizer, network.config.vocab_size)
    longest = min(settings.max_length, room_for_texts(settings, network.config.max_position_embeddings))
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
