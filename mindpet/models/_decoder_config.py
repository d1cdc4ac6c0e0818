"""The numbers that describe a Llama, a Qwen2 or a GLM, read from a `config.json` and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mindpet.models._config_values import (
    ACTIVATION,
    DROPOUT,
    EPSILON,
    FLAG,
    LIST,
    NOT_NEGATIVE,
    SHARE,
    SIZE,
    TOKENS,
    Rule,
    Tokens,
    as_tuple,
    check_fields,
    check_multiple,
    check_values,
    read_config,
    read_end_tokens,
    refuse_features,
)
from mindpet.models._decoder_defaults import CHATGLM, CHATGLM_FIXED, GLM, LLAMA, QWEN2
from mindpet.models._rope import Rope
from mindpet.utils.exceptions import InputError

__all__ = ["MODEL_TYPES", "DecoderConfig"]

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rotated",
)
_RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (_SIZES, SIZE),
    (("hidden_act",), ACTIVATION),
    (("rms_norm_eps",), EPSILON),
    (("initializer_range",), NOT_NEGATIVE),
    (("attention_dropout",), DROPOUT),
    (("tie_word_embeddings", "qkv_bias", "output_bias", "mlp_bias", "fused_gate", "interleaved"), FLAG),
    (("eos_token_id",), TOKENS),
)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder; names are those of transformers' configurations where these have the field.

    Args:
        model_type: llama, qwen2, glm or chatglm: whose paths the cells have.
        vocab_size: Tokens in the vocabulary.
        hidden_size: Width of the hidden states.
        intermediate_size: Width of the feed-forward layer.
        num_hidden_layers: Transformer blocks.
        num_attention_heads: Heads of the queries.
        num_key_value_heads: Heads of keys and values, a divisor of `num_attention_heads`.
        head_dim: Width of a head.
        rotated: So many elements of a head, rounded up to pairs, are rotated by their position.
        interleaved: The pairs are neighbours (GLM); otherwise an element of the first half of the head and one of the
            second half (Llama).
        rope: The angles of the rotation.
        max_position_embeddings: Longest sequence, in tokens; with a scaled `rope`, the longest that it is meant for.
        hidden_act: Activation of the gate: gelu and gelu_python (exact), gelu_new, gelu_fast, gelu_accurate,
            gelu_pytorch_tanh and gelu_python_tanh (the tanh approximation), relu, silu, swish or tanh.
        fused_gate: Gate and value of the feed-forward layer come from one layer, `gate_up_proj` (GLM).
        qkv_bias: Whether the projections to queries, keys and values have biases.
        output_bias: Whether the attention's output projection has one.
        mlp_bias: Whether the feed-forward layers have biases.
        rms_norm_eps: Constant added to the mean square.
        attention_dropout: Dropout of the attention probabilities.
        tie_word_embeddings: Whether the head's weight is the embedding of the words.
        initializer_range: Standard deviation of newly initialised weights.
        eos_token_id: The token, or tokens, at which a text ends.

    Raises:
        InputError: A value of the wrong type or out of range, or values that do not fit each other.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotated: int
    interleaved: bool = False
    rope: Rope = field(default_factory=Rope)
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    fused_gate: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    eos_token_id: Tokens = None

    def __post_init__(self) -> None:
        check_fields(self, _RULES)
        check_multiple(self, "num_attention_heads", "num_key_value_heads")
        pairs = (self.rotated + 1) // 2
        if 2 * pairs > self.head_dim or not (self.interleaved or 2 * pairs == self.head_dim):
            expected = "at most head_dim, in pairs" if self.interleaved else "the whole head, in pairs"
            raise InputError(
                f"{self.rotated} of {self.head_dim} elements of a head are rotated; expected is {expected}: correct "
                "head_dim or partial_rotary_factor."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DecoderConfig:
        """Read the contents of a `config.json`; missing keys take its defaults, foreign keys are ignored.

        Args:
            values: The parsed file, of transformers' Llama, Qwen2 or Glm, or of THUDM's own ChatGLM2.

        Raises:
            InputError: Another architecture, a value out of range, or a feature that would change the numbers and is
                not built here (sliding windows, other scalings of positions, quantised weights); the message names it.
        """
        model_type = values.get("model_type")
        if model_type not in MODEL_TYPES:
            raise InputError(
                f"model_type is {model_type!r}; supported are {', '.join(_READERS)}: name the folder of such a model."
            )
        refuse_features(values, {"quantization_config": None, "pruned_heads": {}})
        return _READERS[model_type](values)

    @classmethod
    def from_folder(cls, folder: str | Path) -> DecoderConfig:
        """Read `config.json` of a model folder; `generation_config.json` may name more end tokens.

        Args:
            folder: The model's folder.

        Raises:
            InputError: As `from_dict`, and when a file is missing or no JSON object; the message names the file.
        """
        config = read_config(folder, cls.from_dict)
        return replace(config, eos_token_id=read_end_tokens(folder, config.eos_token_id))

    def with_dropout(self, dropout: float | None) -> DecoderConfig:
        """Return this configuration with the dropout `dropout`, or itself for None."""
        return self if dropout is None else replace(self, attention_dropout=dropout)


# The fields that have the same name in transformers' configurations.
_SAME = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "attention_dropout",
    "tie_word_embeddings",
    "initializer_range",
)


def _of_transformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that transformers' three configurations express in one way."""
    values = {**values, **_rope_values(values)}
    heads = values["num_attention_heads"]
    check_values(values, ((("hidden_size", "num_attention_heads"), SIZE), (("partial_rotary_factor",), SHARE)))
    head_dim = values["hidden_size"] // heads if values["head_dim"] is None else values["head_dim"]
    check_values({"head_dim": head_dim}, ((("head_dim",), SIZE),))
    check_values(values, ((("max_position_embeddings",), SIZE),))
    rope = Rope.from_values(values["rope_theta"], values["rope_scaling"], values["max_position_embeddings"])
    key_heads = values["num_key_value_heads"]
    return {name: values[name] for name in _SAME} | {
        "num_key_value_heads": heads if key_heads is None else key_heads,
        "head_dim": head_dim,
        "rotated": int(head_dim * values["partial_rotary_factor"]),
        "rope": rope,
        "max_position_embeddings": rope.limit(values["max_position_embeddings"]),
        "eos_token_id": as_tuple(values["eos_token_id"]),
    }


def _rope_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `rope_parameters` says, in which transformers 5 puts three keys of transformers 4 together."""
    given = values.get("rope_parameters")
    if not isinstance(given, Mapping):
        return {}
    named = {name: given[name] for name in ("rope_theta", "partial_rotary_factor") if name in given}
    return named | {"rope_scaling": given}


def _refuse_windows(values: Mapping[str, Any]) -> None:
    """Refuse a Qwen2 whose attentions look back over a window only, in some of its layers at least."""
    if not values["use_sliding_window"] or values["sliding_window"] is None:
        return
    check_values(
        values, ((("max_window_layers",), NOT_NEGATIVE), (("num_hidden_layers",), SIZE), (("layer_types",), LIST))
    )
    kinds = values["layer_types"]
    in_use = "sliding_attention" in kinds if kinds else values["max_window_layers"] < values["num_hidden_layers"]
    if in_use:
        raise InputError(
            f"use_sliding_window is {values['use_sliding_window']!r} and some layers have a window of "
            f"{values['sliding_window']} tokens; only attention over the whole text is supported: use a model without "
            "windows."
        )


def _read_llama(values: Mapping[str, Any]) -> DecoderConfig:
    refuse_features(values, {"rope_interleaved": False})
    values = {**LLAMA, **values}
    biases = {name: values["attention_bias"] for name in ("qkv_bias", "output_bias")}
    return DecoderConfig(**_of_transformers(values), **biases, mlp_bias=values["mlp_bias"])


def _read_qwen2(values: Mapping[str, Any]) -> DecoderConfig:
    values = {**QWEN2, **values}
    _refuse_windows(values)
    return DecoderConfig(**_of_transformers(values), qkv_bias=True)


def _read_glm(values: Mapping[str, Any]) -> DecoderConfig:
    values = {**GLM, **values}
    return DecoderConfig(
        **_of_transformers(values), qkv_bias=values["attention_bias"], interleaved=True, fused_gate=True
    )


def _read_chatglm(values: Mapping[str, Any]) -> DecoderConfig:
    """Read THUDM's own configuration of ChatGLM2 and ChatGLM3, whose positions rotate half of each head."""
    refuse_features(values, CHATGLM_FIXED)
    values = {**CHATGLM, **values}
    check_values(values, ((("kv_channels",), SIZE),))
    shared = values["multi_query_attention"]
    return DecoderConfig(
        model_type="chatglm",
        vocab_size=values["padded_vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["ffn_hidden_size"],
        num_hidden_layers=values["num_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values["multi_query_group_num" if shared else "num_attention_heads"],
        head_dim=values["kv_channels"],
        rotated=values["kv_channels"] // 2,
        interleaved=True,
        max_position_embeddings=values["seq_length"],
        fused_gate=True,
        qkv_bias=values["add_bias_linear"] or values["add_qkv_bias"],
        output_bias=values["add_bias_linear"],
        mlp_bias=values["add_bias_linear"],
        rms_norm_eps=values["layernorm_epsilon"],
        attention_dropout=values["attention_dropout"],
        eos_token_id=as_tuple(values["eos_token_id"]),
    )


_READERS: dict[str, Callable[[Mapping[str, Any]], DecoderConfig]] = {
    "llama": _read_llama,
    "qwen2": _read_qwen2,
    "glm": _read_glm,
    "chatglm": _read_chatglm,
}
MODEL_TYPES = tuple(_READERS)
