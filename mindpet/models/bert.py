"""BERT (arXiv:1810.04805): the encoder and the classifier on it, with the numbers and paths of transformers.

Each cell has the path that transformers gives its module (`bert.encoder.layer.0.attention.self.query`), so patterns,
adapters and files that name modules fit both. Parameters have MindSpore's leaf names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import initializer

from mindpet import kernels
from mindpet.models._config import BertConfig
from mindpet.models._layers import ACTIVATIONS, Dense, LayerNorm, additive_mask, first_rows, starting_weights
from mindpet.models._loading import ENCODER_PREFIX, file_name, load_parameters, read_bert_tensors, without
from mindpet.utils.dropout import Dropout
from mindpet.utils.exceptions import InputError

__all__ = ["POOLINGS", "BertConfig", "BertForSequenceClassification", "BertModel"]

POOLINGS = ("pooler", "cls", "mean")

_TO_BE_READ = 0.0  # the spread of weights that a file replaces: drawing 110 million normal numbers takes seconds


class BertEmbeddings(nn.Cell):
    """Sum of word, position and segment embeddings, normalised.

    A prefix shifts the positions of the text: `position_shift` is then a cell that returns by how much, and whose
    `tokens` is the most that it can be.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.max_length = config.max_position_embeddings
        self.word_embeddings = self._table(config.vocab_size, config)
        self.position_embeddings = self._table(config.max_position_embeddings, config)
        self.token_type_embeddings = self._table(config.type_vocab_size, config)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.position_ids = Tensor(np.arange(self.max_length, dtype=np.int32)[None])
        self.take = ops.StridedSlice()
        self.position_shift: nn.Cell | None = None

    def construct(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map two (batch, length) to (batch, length, hidden), float32."""
        positions = self.position_embeddings(self._positions(input_ids.shape[1]))
        embedded = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids) + positions
        return self.dropout(self.LayerNorm(embedded))

    def _positions(self, length: int) -> Tensor:
        """Return the positions of the text, (1, length)."""
        longest, beside = self.max_length, ""
        if self.position_shift is not None:
            tokens = self.position_shift.tokens
            longest, beside = longest - tokens, f" beside a prefix of up to {tokens}"
        if length > longest:
            raise ValueError(
                f"The sequence has {length} tokens, but this model takes at most {longest}{beside}: cut the texts."
            )
        positions = self.take(self.position_ids, (0, 0), (1, length), (1, 1))
        return positions if self.position_shift is None else positions + self.position_shift()

    @staticmethod
    def _table(rows: int, config: BertConfig) -> nn.Embedding:
        return nn.Embedding(rows, config.hidden_size, embedding_table=starting_weights(config.initializer_range))


class BertSelfAttention(nn.Cell):
    """Attention of each position to all visible ones, without the output projection.

    It takes a prefix: a cell that is assigned to `prefix` is given the keys and values (batch, length, num_heads *
    head_dim) and the additive mask (batch, 1, 1, length), and returns the three with more keys.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width, spread = config.hidden_size, config.initializer_range
        self.num_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.query = Dense(width, width, spread)
        self.key = Dense(width, width, spread)
        self.value = Dense(width, width, spread)
        probability = config.attention_probs_dropout_prob
        self.dropout = Dropout(probability) if probability else None
        self.prefix: nn.Cell | None = None

    def construct(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length, hidden) and an additive mask (batch, 1, 1, length) to (batch, length, hidden)."""
        query, key, value = self.query(hidden), self.key(hidden), self.value(hidden)
        if self.prefix is not None:
            key, value, mask = self.prefix(key, value, mask)
        return kernels.attention(query, key, value, mask, self.num_heads, self.dropout)


class BertResidual(nn.Cell):
    """A dense layer, dropout, the residual connection and its normalisation: `LayerNorm(dense(x) + residual)`."""

    def __init__(self, inputs: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = Dense(inputs, config.hidden_size, config.initializer_range)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def construct(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map (batch, length, inputs) and (batch, length, hidden) to (batch, length, hidden)."""
        return self.LayerNorm(self.dropout(self.dense(x)), residual)


class BertAttention(nn.Cell):
    """Self-attention with its output projection and residual connection."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertResidual(config.hidden_size, config)

    def construct(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length, hidden) and an additive mask (batch, 1, 1, length) to (batch, length, hidden)."""
        return self.output(self.self(hidden, mask), hidden)


class BertIntermediate(nn.Cell):
    """The widening half of the feed-forward network."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.intermediate_size, config.initializer_range)
        self.activate = ACTIVATIONS[config.hidden_act]

    def construct(self, hidden: Tensor) -> Tensor:
        """Map (batch, length, hidden) to (batch, length, intermediate)."""
        return self.activate(self.dense(hidden))


class BertLayer(nn.Cell):
    """One transformer block."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertResidual(config.intermediate_size, config)

    def construct(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length, hidden) and an additive mask (batch, 1, 1, length) to (batch, length, hidden)."""
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)


class BertEncoder(nn.Cell):
    """The stack of transformer blocks."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.CellList([BertLayer(config) for _ in range(config.num_hidden_layers)])

    def construct(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length, hidden) and an additive mask (batch, 1, 1, length) to (batch, length, hidden)."""
        for layer in self.layer:
            hidden = layer(hidden, mask)
        return hidden


class BertPooler(nn.Cell):
    """A dense layer and tanh on the first position, in float32."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Dense(config.hidden_size, config.hidden_size, config.initializer_range)

    def construct(self, hidden: Tensor) -> Tensor:
        """Map (batch, length, hidden) to (batch, hidden), float32."""
        return kernels.tanh(self.dense(first_rows(hidden)))


class BertModel(nn.Cell):
    """The BERT encoder, `transformers.BertModel`.

    It takes what its attentions' prefixes share: a cell that is assigned to `shared_prefix` is given the mask, and what
    it returns stands in the mask's place up to the attentions' `prefix`.

    Args:
        config: The shape of the network.
        with_pooler: Whether it has the dense layer on the first position.
        compute_dtype: Dtype of the activations between embeddings and output: float32, float16 or (Ascend) bfloat16.
            Parameters stay float32; softmax, LayerNorm's statistics and the pooler compute in float32.
    """

    def __init__(
        self,
        config: BertConfig,
        with_pooler: bool = True,
        compute_dtype: mindspore.Type = mindspore.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if with_pooler else None
        self.shared_prefix: nn.Cell | None = None

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Encode a batch.

        Args:
            input_ids: Int tensor (batch, length), each below vocab_size.
            attention_mask: (batch, length) of any dtype, 1 for a token and 0 for padding.
            token_type_ids: Int tensor (batch, length), the segment of each token.

        Returns:
            The last hidden states (batch, length, hidden) in the compute dtype, and the pooled first position
            (batch, hidden) in float32, or None without a pooler.
        """
        mask = additive_mask(attention_mask)
        if self.shared_prefix is not None:
            mask = self.shared_prefix(mask)
        hidden = self.embeddings(input_ids, token_type_ids).astype(self.compute_dtype)
        hidden = self.encoder(hidden, mask)
        if self.pooler is None:
            return hidden, None
        return hidden, self.pooler(hidden)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dropout: float | None = None,
        compute_dtype: mindspore.Type = mindspore.float32,
    ) -> BertModel:
        """Read a Hugging Face folder (`config.json`, safetensors); the network has a pooler when the folder has one.

        Args:
            folder: The model's folder; a classification head in it is left out.
            dropout: Takes the place of every dropout of the configuration; None keeps them.
            compute_dtype: As in the constructor.

        Raises:
            InputError: A missing or damaged file, another architecture, or weights that do not fit; the message names
                the file. No network is made then.
        """
        config = BertConfig.from_folder(folder).with_dropout(dropout)
        tensors = {
            name.removeprefix(ENCODER_PREFIX): values
            for name, values in without(read_bert_tensors(folder), "classifier.").items()
        }
        with_pooler = any(name.startswith("pooler.") for name in tensors)
        net = cls(replace(config, initializer_range=_TO_BE_READ), with_pooler, compute_dtype)
        load_parameters({file_name(p.name): p for p in net.get_parameters()}, tensors, folder)
        net.config = config
        return net


class BertForSequenceClassification(nn.Cell):
    """BERT with a classification head, `transformers.BertForSequenceClassification` when pooling is 'pooler'.

    Args:
        config: The shape of the network; `num_labels` is the number of classes.
        pooling: How a text becomes one vector: 'pooler' (dense layer and tanh on the first position), 'cls' (the first
            position) or 'mean' (mean of the positions that are no padding).
        compute_dtype: As in `BertModel`; pooling and head compute in float32.

    Attributes:
        head_is_new: Whether the classifier's weights are fresh random numbers rather than read from a file.

    Raises:
        InputError: An unknown pooling.
    """

    def __init__(
        self,
        config: BertConfig,
        pooling: str = "pooler",
        compute_dtype: mindspore.Type = mindspore.float32,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"pooling is {pooling!r}; accepted are {', '.join(POOLINGS)}: choose one of them.")
        self.config = config
        self.pooling = pooling
        self.head_is_new = True
        self.bert = BertModel(config, pooling == "pooler", compute_dtype)
        probability = config.classifier_dropout
        self.dropout = Dropout(config.hidden_dropout_prob if probability is None else probability)
        self.classifier = Dense(config.hidden_size, config.num_labels, config.initializer_range)

    def construct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Classify a batch.

        Args:
            input_ids: Int tensor (batch, length), each below vocab_size.
            attention_mask: (batch, length) of any dtype, 1 for a token and 0 for padding.
            token_type_ids: Int tensor (batch, length), the segment of each token.

        Returns:
            Logits (batch, num_labels), float32.
        """
        return self.classifier(self.dropout(self.features(input_ids, attention_mask, token_type_ids)))

    def features(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return what the classifier sees of each text, (batch, hidden) in float32; arguments as in `construct`."""
        hidden, pooled = self.bert(input_ids, attention_mask, token_type_ids)
        if self.pooling == "pooler":
            return pooled
        if self.pooling == "cls":
            return first_rows(hidden)
        weights = ops.expand_dims(attention_mask.astype(mindspore.float32), -1)
        return (hidden.astype(mindspore.float32) * weights).sum(axis=1) / ops.maximum(weights.sum(axis=1), 1.0)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        num_labels: int | None = None,
        pooling: str = "pooler",
        dropout: float | None = None,
        compute_dtype: mindspore.Type = mindspore.float32,
    ) -> BertForSequenceClassification:
        """Read a Hugging Face folder: `config.json` and `model.safetensors` or its shards.

        A classifier in the folder is read when it has `num_labels` classes; otherwise the head starts anew, normal with
        `initializer_range` under MindSpore's seed, and `head_is_new` says so.

        Args:
            folder: The model's folder, of any BERT: plain, pretraining or classifier.
            num_labels: Number of classes; None takes it from the folder's classifier, else from its `config.json`.
            pooling: As in the constructor.
            dropout: Takes the place of every dropout of the configuration; None keeps them, 0.0 trains without.
            compute_dtype: As in the constructor.

        Raises:
            InputError: A missing or damaged file, another architecture, weights that do not fit, or no pooler where
                pooling asks for one; the message names the file. No network is made then.
        """
        config = BertConfig.from_folder(folder).with_dropout(dropout)
        tensors = read_bert_tensors(folder)
        if pooling != "pooler":
            tensors = without(tensors, "bert.pooler.")
        elif not any(name.startswith("bert.pooler.") for name in tensors):
            raise InputError(f"{folder} holds no pooler, which pooling 'pooler' needs: choose 'mean' or 'cls'.")
        if num_labels is None:
            head = tensors.get("classifier.weight")
            num_labels = config.num_labels if head is None or head.ndim == 0 else head.shape[0]
        config = replace(config, num_labels=num_labels)

        net = cls(replace(config, initializer_range=_TO_BE_READ), pooling, compute_dtype)
        net.config = net.bert.config = config
        parameters = {file_name(p.name): p for p in net.get_parameters()}
        rows = {values.shape[:1] for name, values in tensors.items() if name.startswith("classifier.")}
        net.head_is_new = (num_labels,) not in rows
        if net.head_is_new:
            parameters, tensors = without(parameters, "classifier."), without(tensors, "classifier.")
        load_parameters(parameters, tensors, folder)
        if net.head_is_new:
            weight = net.classifier.weight
            weight.set_data(initializer(starting_weights(config.initializer_range), weight.shape).init_data())
        return net
