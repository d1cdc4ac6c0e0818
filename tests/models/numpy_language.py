"""The language models once more, in NumPy and float64, and folders as Hugging Face writes them, with random weights."""

import json

import numpy as np
from safetensors.numpy import save_file

from tests.kernels import formulas
from tests.models.numpy_bert import ACTIVATIONS

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 37,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "n_inner": 20,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 36,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": [3, 4],
}
QWEN2 = LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": None}
QWEN2 |= {"hidden_size": 16, "num_hidden_layers": 1}
GLM = LLAMA | {"model_type": "glm", "attention_bias": True, "partial_rotary_factor": 0.5, "num_hidden_layers": 1}
CHATGLM = {
    "model_type": "chatglm",
    "padded_vocab_size": 37,
    "hidden_size": 12,
    "ffn_hidden_size": 20,
    "num_layers": 1,
    "num_attention_heads": 4,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "kv_channels": 8,
    "seq_length": 32,
    "add_qkv_bias": True,
    "layernorm_epsilon": 1e-5,
    "eos_token_id": 2,
    "rmsnorm": True,
}


def shape_of(config):
    """Width, heads, heads of keys, width of a head, and width of the feed-forward layer."""
    if config["model_type"] == "chatglm":
        heads = config["num_attention_heads"]
        shared = config["multi_query_group_num"] if config["multi_query_attention"] else heads
        return config["hidden_size"], heads, shared, config["kv_channels"], config["ffn_hidden_size"]
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config["head_dim"] or width // heads
    return width, heads, config["num_key_value_heads"], head_dim, config["intermediate_size"]


def gpt2_shapes(config):
    width, inner = config["n_embd"], config["n_inner"] or 4 * config["n_embd"]
    found = {"wte.weight": (config["vocab_size"], width), "wpe.weight": (config["n_positions"], width)}
    dense, norms = {}, ["ln_f"]
    for layer in (f"h.{number}" for number in range(config["n_layer"])):
        dense |= {f"{layer}.attn.c_attn": (width, 3 * width), f"{layer}.attn.c_proj": (width, width)}
        dense |= {f"{layer}.mlp.c_fc": (width, inner), f"{layer}.mlp.c_proj": (inner, width)}
        norms += [f"{layer}.ln_1", f"{layer}.ln_2"]
    found |= {f"{name}.weight": shape for name, shape in dense.items()}
    found |= {f"{name}.bias": shape[-1:] for name, shape in dense.items()}
    found |= {f"{name}.{leaf}": (width,) for name in norms for leaf in ("weight", "bias")}
    return {f"transformer.{name}": shape for name, shape in found.items()}


def decoder_shapes(config):
    """As transformers names them; for chatglm as its authors do."""
    width, heads, key_heads, head_dim, inner = shape_of(config)
    queries, keys = heads * head_dim, key_heads * head_dim
    if config["model_type"] == "chatglm":
        layer = "transformer.encoder.layers.0."
        found = {
            "transformer.embedding.word_embeddings.weight": (config["padded_vocab_size"], width),
            "transformer.encoder.final_layernorm.weight": (width,),
            "transformer.output_layer.weight": (config["padded_vocab_size"], width),
            f"{layer}input_layernorm.weight": (width,),
            f"{layer}post_attention_layernorm.weight": (width,),
            f"{layer}self_attention.query_key_value.weight": (queries + 2 * keys, width),
            f"{layer}self_attention.dense.weight": (width, queries),
            f"{layer}mlp.dense_h_to_4h.weight": (2 * inner, width),
            f"{layer}mlp.dense_4h_to_h.weight": (width, inner),
        }
        if config["add_qkv_bias"]:
            found[f"{layer}self_attention.query_key_value.bias"] = (queries + 2 * keys,)
        return found
    found = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (config["vocab_size"], width)
    biased = config.get("attention_bias", False) or config["model_type"] == "qwen2"
    for layer in (f"model.layers.{number}" for number in range(config["num_hidden_layers"])):
        projections = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        found |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in projections.items()}
        if biased:
            found |= {f"{layer}.self_attn.{name}.bias": shape[:1] for name, shape in projections.items()}
        found[f"{layer}.self_attn.o_proj.weight"] = (width, queries)
        fused = {"gate_up_proj": (2 * inner, width)} if config["model_type"] == "glm" else {}
        gates = fused or {"gate_proj": (inner, width), "up_proj": (inner, width)}
        gates |= {"down_proj": (width, inner)}
        found |= {f"{layer}.mlp.{name}.weight": shape for name, shape in gates.items()}
        found |= {f"{layer}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    return found


def random_tensors(config, seed=0):
    """Weights large enough that attention and activations leave their linear range."""
    rng = np.random.default_rng(seed)
    shapes = gpt2_shapes(config) if config["model_type"] == "gpt2" else decoder_shapes(config)
    norms = ("ln_1.weight", "ln_2.weight", "ln_f.weight", "norm.weight")
    return {
        name: (0.4 * rng.normal(size=shape) + name.endswith(norms)).astype(np.float32) for name, shape in shapes.items()
    }


def write_folder(folder, config, tensors=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(random_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def random_batch(batch=3, length=7, vocabulary=37, seed=1):
    """Token numbers, and a mask with padding on the left, on the right and nowhere."""
    input_ids = np.random.default_rng(seed).integers(0, vocabulary, (batch, length)).astype(np.int32)
    attention_mask = np.ones((batch, length), np.int32)
    attention_mask[0, :2] = 0
    if batch > 1:
        attention_mask[1, -3:] = 0
    return input_ids, attention_mask


def logits(tensors, config, input_ids, attention_mask):
    """The logits of every position (batch, length, vocabulary)."""
    weights = {name: values.astype(np.float64) for name, values in tensors.items()}
    model = {"gpt2": _gpt2}.get(config["model_type"], _decoder)
    positions = np.maximum(attention_mask.cumsum(1) - 1, 0)
    # A token of padding sees nothing; what it gives is compared with nothing.
    mask = np.where(attention_mask > 0, 0.0, -1e4)[:, None, None]
    return model(weights, config, input_ids, positions, mask)


def _gpt2(weights, config, input_ids, positions, mask):
    epsilon = config["layer_norm_epsilon"]

    def dense(x, name):
        return x @ weights[f"transformer.{name}.weight"] + weights[f"transformer.{name}.bias"]

    def norm(x, name):
        name = f"transformer.{name}"
        return formulas.layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    words = weights["transformer.wte.weight"]
    hidden = words[input_ids] + weights["transformer.wpe.weight"][positions]
    for layer in (f"h.{number}" for number in range(config["n_layer"])):
        query, key, value = np.split(dense(norm(hidden, f"{layer}.ln_1"), f"{layer}.attn.c_attn"), 3, -1)
        attended = formulas.attention(query, key, value, mask, config["n_head"], causal=True)
        hidden = hidden + dense(attended, f"{layer}.attn.c_proj")
        widened = dense(norm(hidden, f"{layer}.ln_2"), f"{layer}.mlp.c_fc")
        hidden = hidden + dense(ACTIVATIONS[config["activation_function"]](widened), f"{layer}.mlp.c_proj")
    return norm(hidden, "ln_f") @ weights.get("lm_head.weight", words).T


def _decoder(weights, config, input_ids, positions, mask):
    original = config["model_type"] == "chatglm"
    weights = _renamed(weights, config) if original else weights
    _, heads, key_heads, head_dim, _ = shape_of(config)
    interleaved = config["model_type"] in ("glm", "chatglm")
    rotated = int(head_dim * (0.5 if original else config.get("partial_rotary_factor", 1.0)))
    frequencies = config.get("rope_theta", 10000.0) ** (-np.arange(0, rotated, 2) / rotated)
    angles = positions[..., None] * frequencies
    epsilon = config["layernorm_epsilon" if original else "rms_norm_eps"]

    def dense(x, name):
        return formulas.dense(x, weights[f"{name}.weight"], weights.get(f"{name}.bias", 0.0))

    def norm(x, name):
        return formulas.rms_norm(x, weights[f"{name}.weight"], epsilon)

    words = weights["model.embed_tokens.weight"]
    hidden = words[input_ids]
    layers = config["num_layers" if original else "num_hidden_layers"]
    for layer in (f"model.layers.{number}" for number in range(layers)):
        x = norm(hidden, f"{layer}.input_layernorm")
        query, key, value = (dense(x, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        query = formulas.rotary(query, angles, heads, interleaved)
        key = formulas.rotary(key, angles, key_heads, interleaved)
        attended = formulas.attention(query, key, value, mask, heads, key_heads, causal=True)
        hidden = hidden + dense(attended, f"{layer}.self_attn.o_proj")
        x = norm(hidden, f"{layer}.post_attention_layernorm")
        if interleaved:
            gate, up = np.split(dense(x, f"{layer}.mlp.gate_up_proj"), 2, -1)
        else:
            gate, up = dense(x, f"{layer}.mlp.gate_proj"), dense(x, f"{layer}.mlp.up_proj")
        hidden = hidden + dense(ACTIVATIONS[config.get("hidden_act", "silu")](gate) * up, f"{layer}.mlp.down_proj")
    return norm(hidden, "model.norm") @ weights.get("lm_head.weight", words).T


def _renamed(weights, config):
    """The tensors of a ChatGLM2 by the names of transformers' Glm."""
    _, heads, key_heads, head_dim, _ = shape_of(config)
    names = {
        "transformer.embedding.word_embeddings": "model.embed_tokens",
        "transformer.encoder.final_layernorm": "model.norm",
        "transformer.output_layer": "lm_head",
        "transformer.encoder.layers": "model.layers",
        "self_attention.dense": "self_attn.o_proj",
        "mlp.dense_h_to_4h": "mlp.gate_up_proj",
        "mlp.dense_4h_to_h": "mlp.down_proj",
    }
    renamed = {}
    for name, values in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if "query_key_value" not in name:
            renamed[name] = values
            continue
        if config["multi_query_attention"]:
            parts = np.split(values, np.cumsum([heads * head_dim, key_heads * head_dim]))
        else:
            by_head = values.reshape(heads, 3, head_dim, -1)
            parts = [by_head[:, part].reshape(-1, *values.shape[1:]) for part in range(3)]
        for part, rows in zip("qkv", parts, strict=True):
            renamed[name.replace("self_attention.query_key_value", f"self_attn.{part}_proj")] = rows
    return renamed
