"""A very small Llama as a GGUF file."""

import json

import gguf
import numpy as np

from tests.data.tiny_tokenizers import CHATML, SPECIAL, byte_level

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDE, LAYERS = 64, 4, 2, 16, 96, 2


def llama_weights(seed=0):
    """Return random weights by the names and in the order of transformers."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (len(vocabulary()), HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.input_layernorm.weight": (HIDDEN,),
            f"{name}.post_attention_layernorm.weight": (HIDDEN,),
            f"{name}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{name}.mlp.gate_proj.weight": (WIDE, HIDDEN),
            f"{name}.mlp.up_proj.weight": (WIDE, HIDDEN),
            f"{name}.mlp.down_proj.weight": (HIDDEN, WIDE),
        }
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def vocabulary():
    """Return the tokens in the order of their ids."""
    ids = byte_level().get_vocab(with_added_tokens=True)
    return sorted(ids, key=ids.get)


def gguf_fields():
    """Return the metadata of the model by key, but for its architecture."""
    merges = json.loads(byte_level().to_str())["model"]["merges"]
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": WIDE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary(),
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in vocabulary()],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def gguf_tensors(weights):
    """Return weights as llama.cpp keeps them: by its names, the rows of query and key in pairs."""
    map_ = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    tensors = {}
    for name, values in weights.items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        if heads:
            halves = values.reshape(heads, 2, HEAD_DIM // 2, HIDDEN)
            values = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
        tensors[map_.get_name(name, try_suffixes=(".weight",))] = values
    return tensors


def write_gguf(path, fields, tensors, kinds=None, architecture="llama"):
    """Write a GGUF file by the package `gguf`; tensors in `kinds` are quantised so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    adders = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    for key, value in fields.items():
        adders[type(value)](key, value)
    for name, values in tensors.items():
        kind = (kinds or {}).get(name)
        writer.add_tensor(name, gguf.quantize(values, kind) if kind else values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
