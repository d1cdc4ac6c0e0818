"""The numbers that describe a BERT, read from a Hugging Face `config.json` and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mindpet.models._layers import ACTIVATIONS
from mindpet.storage.reader import read_json
from mindpet.utils.exceptions import InputError

__all__ = ["BertConfig"]

CONFIG_FILE = "config.json"

_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
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
# Keys of config.json that change the numbers, with the one value that BertModel computes.
_FIXED: dict[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_dropout(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


# Fields, what makes a value valid, and how to say it.
_RULES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (_SIZES, _is_size, "a positive integer"),
    (_DROPOUTS[:2], _is_dropout, "a number from 0 to below 1"),
    (_DROPOUTS[2:], lambda value: value is None or _is_dropout(value), "null or a number from 0 to below 1"),
    (("initializer_range",), lambda value: _is_number(value) and 0 <= value < math.inf, "a number from 0"),
    (("layer_norm_eps",), lambda value: _is_number(value) and 0 < value < 1, "a number between 0 and 1"),
    (("hidden_act",), lambda value: value in tuple(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
)


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; names and defaults are those of a Hugging Face `config.json`.

    Args:
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the hidden states; a multiple of `num_attention_heads`.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads of each attention.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: Its activation: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish or tanh.
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
        for names, is_valid, expected in _RULES:
            for name in names:
                if not is_valid(getattr(self, name)):
                    raise InputError(f"{name} is {getattr(self, name)!r}; expected is {expected}: correct the value.")
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size is {self.hidden_size}; expected is a multiple of num_attention_heads "
                f"({self.num_attention_heads}): correct one of the two."
            )

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
        for key, supported in _FIXED.items():
            if values.get(key) not in (None, supported):
                raise InputError(
                    f"{key} is {values[key]!r}; only {supported!r} is supported: use a model without this feature."
                )
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
        path = Path(folder) / CONFIG_FILE
        values = read_json(path)
        if not isinstance(values, dict):
            raise InputError(
                f"{path} holds a {type(values).__name__}, expected is a JSON object: fetch the file again."
            )
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

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
