"""The weights of a decoder by the names of transformers, whoever has named them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindpet.models._config_values import read_config_values
from mindpet.models._decoder_config import DecoderConfig
from mindpet.models._loading import read_language_tensors
from mindpet.storage.reader import read_sharded_safetensors

__all__ = ["read_decoder_tensors"]

_PREFIX = "model."
_CONSTANTS = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"
_CHATGLM_CONSTANT = "transformer.rotary_pos_emb.inv_freq"
_FUSED = ".self_attention.query_key_value."
# How THUDM names the tensors of ChatGLM2, and how transformers names those of Glm; the first that fits counts.
_CHATGLM_NAMES = (
    ("transformer.embedding.word_embeddings.", "model.embed_tokens."),
    ("transformer.encoder.final_layernorm.", "model.norm."),
    ("transformer.encoder.layers.", "model.layers."),
    ("transformer.output_layer.", "lm_head."),
)
_CHATGLM_PARTS = (
    (".self_attention.dense.", ".self_attn.o_proj."),
    (".mlp.dense_h_to_4h.", ".mlp.gate_up_proj."),
    (".mlp.dense_4h_to_h.", ".mlp.down_proj."),
)


def read_decoder_tensors(folder: str | Path, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Return the weights in a folder under the names of transformers' language model.

    Args:
        folder: The model's folder.
        config: The shape of the network.

    Raises:
        InputError: No readable safetensors files, or a tied head that is not the embedding.
    """
    if config.model_type != "chatglm":
        return read_language_tensors(folder, _PREFIX, _CONSTANTS, config.tie_word_embeddings)
    by_head = not read_config_values(folder).get("multi_query_attention", False)
    tensors: dict[str, np.ndarray] = {}
    stored = read_sharded_safetensors(folder)
    for name in list(stored):
        values = stored.pop(name)  # one that is split into copies is then freed
        if name == _CHATGLM_CONSTANT:
            continue
        path = _name_of_transformers(name)
        if _FUSED in path and values.shape[:1] == (_fused_rows(config),):
            parts = _split(values, config, by_head)
            tensors |= {path.replace(_FUSED, f".self_attn.{part}."): rows for part, rows in parts.items()}
        else:
            tensors[path] = values
    return tensors


def _name_of_transformers(name: str) -> str:
    for old, new in _CHATGLM_NAMES:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    for old, new in _CHATGLM_PARTS:
        name = name.replace(old, new)
    return name


def _fused_rows(config: DecoderConfig) -> int:
    return (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim


def _split(values: np.ndarray, config: DecoderConfig, by_head: bool) -> dict[str, np.ndarray]:
    """Split the rows of a fused matrix, or bias, into those of queries, keys and values.

    Args:
        values: All queries before all keys before all values; or, `by_head`, the three of one head after the other.
        config: The shape of the network.
        by_head: The order.
    """
    if by_head:
        heads = values.reshape(config.num_attention_heads, 3, config.head_dim, *values.shape[1:])
        query, key, value = (heads[:, part].reshape(-1, *values.shape[1:]) for part in range(3))
    else:
        queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        query, key, value = np.split(values, (queries, queries + keys))
    return {"q_proj": query, "k_proj": key, "v_proj": value}
