"""A Llama out of a GGUF file, laid out as a Hugging Face model folder."""

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from mindpet.storage.atomic import write_json, write_text
from mindpet.storage.gguf import GgufFile, read_gguf
from mindpet.storage.tensors import write_safetensors
from mindpet.utils.exceptions import InputError

__all__ = ["write_llama_folder"]

_Value = TypeVar("_Value", bound=int | float | str | list)

_KINDS = {int: "whole number", float: "number", str: "text", list: "list"}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_HEAD = {"output.weight": "lm_head.weight"}  # missing where the head is the embedding
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # the kind of token that stands for no text
_SPECIAL_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_llama_folder(source: Path, folder: Path) -> None:
    """Write config.json, model.safetensors (float32), tokenizer.json and tokenizer_config.json into `folder`.

    float32 holds every dequantised value exactly. llama.cpp keeps the rows of each head's query and key in pairs
    (i, i + head_dim / 2), as its rotation turns neighbours; they get back the order that transformers has.

    Args:
        source: A folder with one GGUF file, a Llama whose tokenizer is the byte-level BPE of SmolLM.
        folder: An existing empty folder.

    Raises:
        InputError: There is no such file, or it holds something that has no place in the folder.
    """
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise InputError(f"{source} holds {len(files)} GGUF files; expected is one: fetch the model again.")
    gguf = read_gguf(files[0])
    config = _config(gguf)
    tensors = _tensors(gguf, config)
    tokenizer, tokenizer_config = _tokenizer(gguf).to_str(pretty=True), _tokenizer_config(gguf)
    write_json(folder / "config.json", config)
    write_safetensors(folder / "model.safetensors", tensors, dict.fromkeys(tensors, "float32"), {"format": "pt"})
    write_text(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", tokenizer_config)


def _field(gguf: GgufFile, key: str, kind: type[_Value]) -> _Value:
    value = gguf.fields.get(key)
    if type(value) is not kind:
        raise InputError(f"{gguf.path}: {key} is {value!r:.40}; expected a {_KINDS[kind]}: fetch the file again.")
    return value


def _expect(gguf: GgufFile, key: str, expected: str) -> None:
    if (found := _field(gguf, key, str)) != expected:
        raise InputError(f"{gguf.path}: {key} is {found!r}; only {expected!r} can be converted.")


def _config(gguf: GgufFile) -> dict[str, Any]:
    _expect(gguf, "general.architecture", "llama")
    hidden, heads = (_field(gguf, f"llama.{key}", int) for key in ("embedding_length", "attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": _field(gguf, "tokenizer.ggml.bos_token_id", int),
        "eos_token_id": _field(gguf, "tokenizer.ggml.eos_token_id", int),
        "pad_token_id": _field(gguf, "tokenizer.ggml.padding_token_id", int),
        "head_dim": _field(gguf, "llama.rope.dimension_count", int),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": _field(gguf, "llama.feed_forward_length", int),
        "max_position_embeddings": _field(gguf, "llama.context_length", int),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": _field(gguf, "llama.block_count", int),
        "num_key_value_heads": _field(gguf, "llama.attention.head_count_kv", int),
        "rms_norm_eps": _shortest(_field(gguf, "llama.attention.layer_norm_rms_epsilon", float)),
        "rope_scaling": None,
        "rope_theta": _shortest(_field(gguf, "llama.rope.freq_base", float)),
        "tie_word_embeddings": not _HEAD.keys() & gguf.tensors.keys(),
        "torch_dtype": "float32",
        "vocab_size": len(_field(gguf, "tokenizer.ggml.tokens", list)),
    }


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensors(gguf: GgufFile, config: dict[str, Any]) -> dict[str, np.ndarray]:
    names = dict(_WHOLE) if config["tie_word_embeddings"] else _WHOLE | _HEAD
    for layer in range(config["num_hidden_layers"]):
        names |= {f"blk.{layer}.{old}.weight": f"model.layers.{layer}.{new}.weight" for old, new in _LAYER.items()}
    if differing := sorted(names.keys() ^ gguf.tensors.keys()):
        state = "is missing" if differing[0] in names else "has no place in a Llama"
        raise InputError(f"{gguf.path}: the tensor {differing[0]!r} {state}; fetch the file again.")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {}
    for old, new in names.items():
        values = gguf.tensors[old]
        count = heads.get(old.split(".")[-2])
        tensors[new] = _halves_apart(gguf, values, count) if count else values
    return tensors


def _halves_apart(gguf: GgufFile, weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a weight (heads * head_dim, in) whose rows come in pairs with the first half of each head's rows first."""
    if weight.ndim != 2 or len(weight) % (2 * heads):
        raise InputError(f"{gguf.path}: a weight of shape {weight.shape} has no {heads} heads; fetch the file again.")
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(gguf: GgufFile) -> tokenizers.Tokenizer:
    _expect(gguf, "tokenizer.ggml.model", "gpt2")
    _expect(gguf, "tokenizer.ggml.pre", "smollm")
    tokens, kinds, merges = (_field(gguf, f"tokenizer.ggml.{key}", list) for key in ("tokens", "token_type", "merges"))
    if len(kinds) != len(tokens):
        raise InputError(f"{gguf.path}: {len(tokens)} tokens are of {len(kinds)} kinds; fetch the file again.")
    model = {
        "type": "BPE",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": merges,
    }
    skeleton = tokenizers.Tokenizer(models.BPE())
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps({**json.loads(skeleton.to_str()), "model": model}))
    except Exception as error:  # The library raises nothing more precise.
        raise InputError(f"{gguf.path}: its tokens and merges are no BPE ({error}); fetch the file again.") from error
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    return backend


def _tokenizer_config(gguf: GgufFile) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "chat_template": _field(gguf, "tokenizer.chat_template", str),
        "clean_up_tokenization_spaces": False,
        "model_max_length": _field(gguf, "llama.context_length", int),
        "tokenizer_class": "GPT2Tokenizer",
        **{role: _special_token(gguf, f"tokenizer.ggml.{name}_token_id") for role, name in _SPECIAL_ROLES.items()},
    }


def _special_token(gguf: GgufFile, key: str) -> str:
    number, tokens = _field(gguf, key, int), _field(gguf, "tokenizer.ggml.tokens", list)
    if not 0 <= number < len(tokens):
        raise InputError(f"{gguf.path}: {key} is {number}; there are {len(tokens)} tokens: fetch the file again.")
    return str(tokens[number])
