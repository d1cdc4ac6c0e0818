"""One decoder for Llama (arXiv:2302.13971), Qwen2 (arXiv:2407.10671) and GLM (arXiv:2406.12793).

It computes the numbers of transformers, and each cell has the path that transformers gives its module
(`model.layers.0.self_attn.q_proj`), so patterns, adapters and files that name modules fit both. A ChatGLM2 in its
own form gets the paths of transformers' Glm. Parameters have MindSpore's leaf names.
"""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.models._causal import CausalLM, LayerPast, Past, Positions, append
from mindpet.models._decoder_config import DecoderConfig
from mindpet.models._decoder_names import read_decoder_tensors
from mindpet.models._layers import ACTIVATIONS, Dense, RMSNorm, additive_mask, starting_weights
from mindpet.utils.dropout import Dropout

__all__ = ["DecoderConfig", "DecoderForCausalLM"]

_GATES_BY_KERNEL = ("silu", "swish")
_GROWING = " (beyond that, its dynamic rope_scaling would change with the length, which is not built here)"


class DecoderAttention(nn.Cell):
    """Causal attention with rotary positions, whose keys and values may have fewer heads than its queries.

    It takes a prefix: a cell that is assigned to `prefix` is given the keys and values (batch, length, num_heads *
    head_dim) and the additive mask (batch, 1, 1, length), and returns the three with more keys. These are not rotated.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, spread = config.hidden_size, config.initializer_range
        self.num_heads = config.num_key_value_heads
        self.num_query_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.interleaved = config.interleaved
        inner, outer = self.num_heads * self.head_dim, self.num_query_heads * self.head_dim
        self.q_proj = Dense(width, outer, spread, config.qkv_bias)
        self.k_proj = Dense(width, inner, spread, config.qkv_bias)
        self.v_proj = Dense(width, inner, spread, config.qkv_bias)
        self.o_proj = Dense(outer, width, spread, config.output_bias)
        self.dropout = Dropout(config.attention_dropout) if config.attention_dropout else None
        self.prefix: nn.Cell | None = None

    def construct(
        self, hidden: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, past: LayerPast | None
    ) -> tuple[Tensor, LayerPast]:
        """Map (batch, length, hidden) to the same shape, and return the keys, values and mask it has looked at.

        Args:
            hidden: (batch, length, hidden).
            mask: Additive, (batch, 1, 1, length).
            cosine: Of each pair's angle, (batch, length, pairs).
            sine: Of the same shape.
            past: Keys, values and mask before these tokens, or None at the beginning.
        """
        query = kernels.rotary(self.q_proj(hidden), cosine, sine, self.num_query_heads, self.interleaved)
        key = kernels.rotary(self.k_proj(hidden), cosine, sine, self.num_heads, self.interleaved)
        value = self.v_proj(hidden)
        if past is not None:
            key, value, mask = append(past, key, value, mask)
        elif self.prefix is not None:
            key, value, mask = self.prefix(key, value, mask)
        attended = kernels.attention(
            query, key, value, mask, self.num_query_heads, self.dropout, self.num_heads, causal=True
        )
        return self.o_proj(attended), (key, value, mask)


class DecoderMLP(nn.Cell):
    """The gated feed-forward network, `down(activation(gate(x)) * up(x))` (arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, inner, spread = config.hidden_size, config.intermediate_size, config.initializer_range
        self.fused = config.fused_gate
        self.inner = inner
        if self.fused:
            self.gate_up_proj = Dense(width, 2 * inner, spread, config.mlp_bias)
        else:
            self.gate_proj = Dense(width, inner, spread, config.mlp_bias)
            self.up_proj = Dense(width, inner, spread, config.mlp_bias)
        self.down_proj = Dense(inner, width, spread, config.mlp_bias)
        self.by_kernel = config.hidden_act in _GATES_BY_KERNEL
        self.act_fn = ACTIVATIONS[config.hidden_act]

    def construct(self, hidden: Tensor) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        if self.fused:
            both = self.gate_up_proj(hidden)
            gate, value = both[..., : self.inner], both[..., self.inner :]
        else:
            gate, value = self.gate_proj(hidden), self.up_proj(hidden)
        if self.by_kernel:
            return self.down_proj(kernels.silu_gate(gate, value))
        return self.down_proj(self.act_fn(gate) * value)


class DecoderLayer(nn.Cell):
    """One transformer block, normalised before its two halves."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = DecoderMLP(config)

    def construct(
        self, hidden: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, past: LayerPast | None
    ) -> tuple[Tensor, LayerPast]:
        """Map (batch, length, hidden) to the same shape; arguments as in DecoderAttention."""
        attended, past = self.self_attn(self.input_layernorm(hidden), mask, cosine, sine, past)
        normalised, hidden = self.post_attention_layernorm(attended, hidden)
        return hidden + self.mlp(normalised), past


class DecoderModel(nn.Cell):
    """Embedding, blocks and the last normalisation.

    It takes what its attentions' prefixes share: a cell that is assigned to `shared_prefix` is given the mask, and what
    it returns stands in the mask's place up to the attentions' `prefix`.
    """

    def __init__(self, config: DecoderConfig, compute_dtype: mindspore.Type) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, embedding_table=starting_weights(config.initializer_range)
        )
        self.positions = Positions(config.max_position_embeddings, _GROWING if config.rope.kind == "dynamic" else "")
        self.frequencies = Tensor(config.rope.frequencies(config.rotated))
        self.attention_factor = config.rope.attention_factor
        self.layers = nn.CellList([DecoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.shared_prefix: nn.Cell | None = None

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None
    ) -> tuple[Tensor, tuple[LayerPast, ...]]:
        """As `CausalLM.decode`."""
        positions = self.positions(attention_mask, None if past is None else past[1])
        angles = ops.expand_dims(positions.astype(mindspore.float32), -1) * self.frequencies
        cosine, sine = ops.cos(angles), ops.sin(angles)
        if self.attention_factor != 1.0:
            cosine, sine = cosine * self.attention_factor, sine * self.attention_factor
        mask = additive_mask(attention_mask)
        if past is None and self.shared_prefix is not None:
            mask = self.shared_prefix(mask)
        hidden = self.embed_tokens(input_ids).astype(self.compute_dtype)
        layers = []
        for number, block in enumerate(self.layers):
            hidden, layer = block(hidden, mask, cosine, sine, None if past is None else past[0][number])
            layers.append(layer)
        return self.norm(hidden), tuple(layers)


class DecoderForCausalLM(CausalLM):
    """Llama, Qwen2 or GLM as a language model: transformers' LlamaForCausalLM, Qwen2ForCausalLM and GlmForCausalLM.

    Args:
        config: The shape of the network.
        compute_dtype: As in `from_pretrained`.
    """

    config_class = DecoderConfig

    def __init__(self, config: DecoderConfig, compute_dtype: mindspore.Type = mindspore.float32) -> None:
        super().__init__(config, compute_dtype)
        self.model = DecoderModel(config, compute_dtype)
        self.add_head(self.model.embed_tokens)

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None
    ) -> tuple[Tensor, tuple[LayerPast, ...]]:
        """As in `CausalLM`."""
        return self.model(input_ids, attention_mask, past)

    @staticmethod
    def read_tensors(folder: str | Path, config: DecoderConfig) -> dict[str, np.ndarray]:
        """As in `CausalLM`."""
        return read_decoder_tensors(folder, config)
