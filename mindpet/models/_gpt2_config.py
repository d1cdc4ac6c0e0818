"""The numbers that describe a GPT-2, read from a Hugging Face `config.json` and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from mindpet.models._config_values import (
    ACTIVATION,
    DROPOUT,
    EPSILON,
    FLAG,
    NOT_NEGATIVE,
    OPTIONAL_SIZE,
    SIZE,
    TOKENS,
    Rule,
    Tokens,
    as_tuple,
    check_fields,
    check_multiple,
    read_config,
    read_end_tokens,
    refuse_features,
)
from mindpet.utils.exceptions import InputError

__all__ = ["GPT2Config"]

_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"), SIZE),
    (("n_inner",), OPTIONAL_SIZE),
    (("activation_function",), ACTIVATION),
    (("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT),
    (("layer_norm_epsilon",), EPSILON),
    (("initializer_range",), NOT_NEGATIVE),
    (("tie_word_embeddings",), FLAG),
    (("eos_token_id",), TOKENS),
)
# Keys of config.json that change the numbers, with the one value that is computed here. Of the two that scale scores,
# transformers' attention implementations make different things. (`reorder_and_upcast_attn` changes no number in
# float32, and the softmax is taken in float32 here in any case.)
_FIXED: dict[str, Any] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "quantization_config": None,
}
# Other names that transformers takes for the fields.
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2; names and defaults are those of a Hugging Face `config.json`.

    Args:
        vocab_size: Tokens in the vocabulary.
        n_positions: Longest sequence, in tokens; `max_position_embeddings` is the same.
        n_embd: Width of the hidden states; a multiple of `n_head`.
        n_layer: Transformer blocks.
        n_head: Heads of each attention.
        n_inner: Width of the feed-forward layer; None for four times `n_embd`.
        activation_function: Its activation: gelu and gelu_python (exact), gelu_new, gelu_fast, gelu_accurate,
            gelu_pytorch_tanh and gelu_python_tanh (the tanh approximation), relu, silu, swish or tanh.
        resid_pdrop: Dropout of the outputs of attentions and feed-forward layers.
        embd_pdrop: Dropout of the embeddings.
        attn_pdrop: Dropout of the attention probabilities.
        layer_norm_epsilon: Constant added to LayerNorm's variance.
        initializer_range: Standard deviation of newly initialised weights.
        tie_word_embeddings: Whether the head's weight is the embedding of the words.
        eos_token_id: The token, or tokens, at which a text ends.

    Raises:
        InputError: A value of the wrong type or out of range.
    """

    model_type: ClassVar[str] = "gpt2"

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    eos_token_id: Tokens = 50256

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        check_multiple(self, "n_embd", "n_head")

    @property
    def max_position_embeddings(self) -> int:
        """The longest sequence, in tokens."""
        return self.n_positions

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Read the contents of a `config.json`; missing keys take GPT-2's defaults, foreign keys are ignored.

        Args:
            values: The parsed file.

        Raises:
            InputError: Another architecture, a value out of range, or a feature that would change the numbers and is
                not built here (scores that are scaled otherwise, cross attention, pruned heads, quantised weights).
        """
        if values.get("model_type") != cls.model_type:
            raise InputError(
                f"model_type is {values.get('model_type')!r}; expected is {cls.model_type!r}: name the folder of a "
                "GPT-2, or load the model with load_causal_lm."
            )
        refuse_features(values, _FIXED)
        values = {_ALIASES.get(name, name): as_tuple(value) for name, value in values.items()}
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    @classmethod
    def from_folder(cls, folder: str | Path) -> GPT2Config:
        """Read `config.json` of a Hugging Face model folder; `generation_config.json` may name more end tokens.

        Args:
            folder: The model's folder.

        Raises:
            InputError: As `from_dict`, and when a file is missing or no JSON object; the message names the file.
        """
        config = read_config(folder, cls.from_dict)
        return replace(config, eos_token_id=read_end_tokens(folder, config.eos_token_id))

    def with_dropout(self, dropout: float | None) -> GPT2Config:
        """Return this configuration with all dropouts set to `dropout`, or itself for None."""
        if dropout is None:
            return self
        return replace(self, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout)
