"""The numbers that describe a BERT, read from a Hugging Face `config.json` and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mindpet.models._config_values import (
    ACTIVATION,
    DROPOUT,
    EPSILON,
    NOT_NEGATIVE,
    OPTIONAL_DROPOUT,
    SIZE,
    Rule,
    check_fields,
    check_multiple,
    read_config,
    refuse_features,
)
from mindpet.utils.exceptions import InputError

__all__ = ["BertConfig"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "num_labels",
)
_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (_SIZES, SIZE),
    (("hidden_dropout_prob", "attention_probs_dropout_prob"), DROPOUT),
    (("classifier_dropout",), OPTIONAL_DROPOUT),
    (("initializer_range",), NOT_NEGATIVE),
    (("layer_norm_eps",), EPSILON),
    (("hidden_act",), ACTIVATION),
)
# Keys of config.json that change the numbers, with the one value that BertModel computes.
_FIXED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; names and defaults are those of a Hugging Face `config.json`.

    Args:
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the hidden states; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads of each attention.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: Its activation: gelu and gelu_python (exact), gelu_new, gelu_fast, gelu_accurate,
            gelu_pytorch_tanh and gelu_python_tanh (the tanh approximation), relu, silu, swish or tanh.
        hidden_dropout_prob: Dropout of embeddings, attention outputs and feed-forward outputs.
        attention_probs_dropout_prob: Dropout of the attention probabilities.
        max_position_embeddings: Longest sequence, in tokens.
        type_vocab_size: Segment numbers.
        initializer_range: Standard deviation of newly initialised weights.
        layer_norm_eps: Constant added to LayerNorm's variance.
        classifier_dropout: Dropout before the classifier; None for `hidden_dropout_prob`.
        num_labels: Classes of the classification head.

    Raises:
        InputError: A value of the wrong type or out of range.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    num_labels: int = 2

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        check_multiple(self, "hidden_size", "num_attention_heads")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BertConfig:
        """Read the contents of a `config.json`; missing keys take BERT's defaults, foreign keys are ignored.

        Args:
            values: The parsed file.

        Raises:
            InputError: Another architecture, a value out of range, or a feature that would change the numbers and is
                not built here (relative positions, decoder, cross attention, pruned heads, quantised weights).
        """
        _check_architecture(values)
        refuse_features(values, _FIXED)
        known = {field.name for field in fields(cls)} & values.keys()
        chosen = {name: values[name] for name in known}
        if "num_labels" not in chosen and isinstance(values.get("id2label"), Mapping):
            chosen["num_labels"] = len(values["id2label"])
        return cls(**chosen)

    @classmethod
    def from_folder(cls, folder: str | Path) -> BertConfig:
        """Read `config.json` of a Hugging Face model folder.

        Args:
            folder: The model's folder.

        Raises:
            InputError: As `from_dict`, and when the file is missing or no JSON object; the message names the file.
        """
        return read_config(folder, cls.from_dict)

    def with_dropout(self, dropout: float | None) -> BertConfig:
        """Return this configuration with all dropouts set to `dropout`, or itself for None."""
        if dropout is None:
            return self
        return replace(
            self, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, classifier_dropout=dropout
        )


def _check_architecture(values: Mapping[str, Any]) -> None:
    """Accept `model_type` bert; a file too old to have one counts by its architectures, `BertModel` and the like."""
    model_type, architectures = values.get("model_type"), values.get("architectures") or []
    named_bert = bool(architectures) and all(str(name).startswith("Bert") for name in architectures)
    if model_type == "bert" or (model_type is None and named_bert):
        return
    raise InputError(
        f"model_type is {model_type!r} and architectures is {architectures!r}; supported is model_type 'bert' "
        "(BertModel, BertForSequenceClassification and other heads on it): name the folder of a BERT."
    )
