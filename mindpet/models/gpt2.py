"""GPT-2 (Radford et al., 2019) with its language-model head, with the numbers and paths of transformers.

Each cell has the path that transformers gives its module (`transformer.h.0.attn.c_attn`), so patterns, adapters and
files that name modules fit both. Parameters have MindSpore's leaf names. What transformers calls Conv1D is a dense
layer here, with the transposed weight (outputs, inputs).
"""

from __future__ import annotations

from pathlib import Path

import mindspore
import numpy as np
from mindspore import Tensor, nn

from mindpet import kernels
from mindpet.models._causal import CausalLM, LayerPast, Past, Positions, append
from mindpet.models._gpt2_config import GPT2Config
from mindpet.models._layers import ACTIVATIONS, Dense, LayerNorm, additive_mask, starting_weights
from mindpet.models._loading import read_language_tensors
from mindpet.utils.dropout import Dropout

__all__ = ["GPT2Config", "GPT2LMHeadModel"]

_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
_CONSTANTS = r"h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, which old files hold


class GPT2Attention(nn.Cell):
    """Causal attention with its projections.

    It takes a prefix: a cell that is assigned to `prefix` is given the keys and values (batch, length, num_heads *
    head_dim) and the additive mask (batch, 1, 1, length), and returns the three with more keys.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        width, spread = config.n_embd, config.initializer_range
        self.num_heads = config.n_head
        self.head_dim = width // config.n_head
        self.c_attn = Dense(width, 3 * width, spread)
        self.c_proj = Dense(width, width, spread)
        self.attn_dropout = Dropout(config.attn_pdrop) if config.attn_pdrop else None
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.prefix: nn.Cell | None = None

    def construct(self, hidden: Tensor, mask: Tensor, past: LayerPast | None) -> tuple[Tensor, LayerPast]:
        """Map (batch, length, hidden) to the same shape, and return the keys, values and mask it has looked at.

        Args:
            hidden: (batch, length, hidden).
            mask: Additive, (batch, 1, 1, length).
            past: Keys, values and mask before these tokens, or None at the beginning.
        """
        width = hidden.shape[-1]
        mixed = self.c_attn(hidden)
        query, key, value = mixed[..., :width], mixed[..., width : 2 * width], mixed[..., 2 * width :]
        if past is not None:
            key, value, mask = append(past, key, value, mask)
        elif self.prefix is not None:
            key, value, mask = self.prefix(key, value, mask)
        attended = kernels.attention(query, key, value, mask, self.num_heads, self.attn_dropout, causal=True)
        return self.resid_dropout(self.c_proj(attended)), (key, value, mask)


class GPT2MLP(nn.Cell):
    """The feed-forward network."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = Dense(config.n_embd, inner, config.initializer_range)
        self.c_proj = Dense(inner, config.n_embd, config.initializer_range)
        self.act = ACTIVATIONS[config.activation_function]
        self.dropout = Dropout(config.resid_pdrop)

    def construct(self, hidden: Tensor) -> Tensor:
        """Map (batch, length, hidden) to the same shape."""
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))))


class GPT2Block(nn.Cell):
    """One transformer block, normalised before its two halves."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def construct(self, hidden: Tensor, mask: Tensor, past: LayerPast | None) -> tuple[Tensor, LayerPast]:
        """Map (batch, length, hidden) to the same shape; arguments as in GPT2Attention."""
        attended, past = self.attn(self.ln_1(hidden), mask, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.ln_2(hidden)), past


class GPT2Model(nn.Cell):
    """Embeddings, blocks and the last normalisation.

    It takes what its attentions' prefixes share: a cell that is assigned to `shared_prefix` is given the mask, and what
    it returns stands in the mask's place up to the attentions' `prefix`.
    """

    def __init__(self, config: GPT2Config, compute_dtype: mindspore.Type) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        spread = starting_weights(config.initializer_range)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, embedding_table=spread)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, embedding_table=spread)
        self.positions = Positions(config.n_positions)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.CellList([GPT2Block(config) for _ in range(config.n_layer)])
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.shared_prefix: nn.Cell | None = None

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None
    ) -> tuple[Tensor, tuple[LayerPast, ...]]:
        """As `CausalLM.decode`."""
        positions = self.positions(attention_mask, None if past is None else past[1])
        hidden = self.drop(self.wte(input_ids) + self.wpe(positions)).astype(self.compute_dtype)
        mask = additive_mask(attention_mask)
        if past is None and self.shared_prefix is not None:
            mask = self.shared_prefix(mask)
        layers = []
        for number, block in enumerate(self.h):
            hidden, layer = block(hidden, mask, None if past is None else past[0][number])
            layers.append(layer)
        return self.ln_f(hidden), tuple(layers)


class GPT2LMHeadModel(CausalLM):
    """GPT-2 as a language model, `transformers.GPT2LMHeadModel`.

    Args:
        config: The shape of the network.
        compute_dtype: As in `from_pretrained`.
    """

    config_class = GPT2Config

    def __init__(self, config: GPT2Config, compute_dtype: mindspore.Type = mindspore.float32) -> None:
        super().__init__(config, compute_dtype)
        self.transformer = GPT2Model(config, compute_dtype)
        self.add_head(self.transformer.wte)

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None
    ) -> tuple[Tensor, tuple[LayerPast, ...]]:
        """As in `CausalLM`."""
        return self.transformer(input_ids, attention_mask, past)

    @staticmethod
    def read_tensors(folder: str | Path, config: GPT2Config) -> dict[str, np.ndarray]:
        """As in `CausalLM`; the weights of Conv1D are transposed."""
        tensors = read_language_tensors(folder, "transformer.", _CONSTANTS, config.tie_word_embeddings)
        return {name: values.T if name.endswith(_CONV1D) else values for name, values in tensors.items()}
