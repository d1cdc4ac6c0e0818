"""The base models and what they are run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from making.values import values

__all__ = ["BASES", "INPUTS", "make_base"]

BASES: dict[str, transformers.PretrainedConfig] = {
    "bert-12": transformers.BertConfig(
        vocab_size=31,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        num_hidden_layers=2,
        max_position_embeddings=16,
        num_labels=3,
    ),
    "bert-10": transformers.BertConfig(
        vocab_size=23,
        hidden_size=10,
        num_attention_heads=2,
        intermediate_size=14,
        num_hidden_layers=3,
        max_position_embeddings=11,
        type_vocab_size=3,
        num_labels=2,
        hidden_act="relu",
        layer_norm_eps=1e-6,
    ),
    "gpt2-8": transformers.GPT2Config(
        vocab_size=23, n_embd=8, n_inner=20, n_head=2, n_layer=2, n_positions=14, bos_token_id=1, eos_token_id=1
    ),
    "llama-12": transformers.LlamaConfig(
        vocab_size=25,
        hidden_size=12,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=20,
        num_hidden_layers=2,
        max_position_embeddings=18,
    ),
}
_CLASSES = {
    "bert": transformers.BertForSequenceClassification,
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
}

# Texts of different lengths, padded on the right: full, short, one token, and with two segments.
INPUTS: dict[str, dict[str, list[list[int]]]] = {
    "classifier": {
        "input_ids": [[2, 5, 19, 3, 22, 7], [2, 9, 11, 3, 0, 0], [17, 0, 0, 0, 0, 0], [2, 20, 3, 6, 3, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0]],
    },
    "decoder": {
        "input_ids": [[2, 5, 19, 5, 22], [7, 20, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]],
    },
}


def make_base(name: str, folder: Path) -> None:
    """Write a base model as transformers writes it."""
    config = BASES[name]
    model: Any = _CLASSES[config.model_type](config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(values(name, key, tuple(parameter.shape), spread=0.5)))
    model.save_pretrained(folder)
