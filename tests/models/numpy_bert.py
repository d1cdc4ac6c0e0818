"""BERT once more, in NumPy and float64, and folders as Hugging Face writes them, filled with random weights."""

import json

import numpy as np
from safetensors.numpy import save_file
from scipy import special

from tests.kernels import formulas

ACTIVATIONS = {
    "gelu": formulas.gelu,
    "gelu_new": formulas.gelu_tanh,
    "gelu_pytorch_tanh": formulas.gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * special.expit(x),
    "tanh": np.tanh,
}

TINY = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": 41,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "hidden_act": "gelu",
    "max_position_embeddings": 9,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "a", "1": "b", "2": "c", "3": "d"},
}


def shapes(config, classes=4):
    """The tensors of `BertForSequenceClassification` by name."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    found = {
        "bert.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "bert.embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "bert.embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    dense = {"bert.pooler.dense": (hidden, hidden), "classifier": (classes, hidden)}
    norms = ["bert.embeddings.LayerNorm"]
    for layer in (f"bert.encoder.layer.{number}" for number in range(config["num_hidden_layers"])):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{layer}.attention.{name}"] = (hidden, hidden)
        dense[f"{layer}.intermediate.dense"] = (wide, hidden)
        dense[f"{layer}.output.dense"] = (hidden, wide)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in dense.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        found |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return found


def random_tensors(config, classes=4, seed=0):
    """Weights large enough that attention and activations leave their linear range."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.4 * rng.normal(size=shape) + name.endswith("LayerNorm.weight")).astype(np.float32)
        for name, shape in shapes(config, classes).items()
    }


def write_folder(folder, config=TINY, tensors=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(random_tensors(config) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def random_batch(config, batch=3, length=6, seed=1):
    """Token numbers, a mask with padding at the end, in the middle and nowhere, and segment numbers."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(0, config["vocab_size"], (batch, length))
    token_type_ids = rng.integers(0, config["type_vocab_size"], (batch, length))
    attention_mask = np.ones((batch, length), np.int64)
    attention_mask[0, length // 2 + 1 :] = 0
    if batch > 1 and length > 2:
        attention_mask[1, 1] = 0
    return input_ids, attention_mask, token_type_ids


def bert(tensors, config, input_ids, attention_mask, token_type_ids):
    """The last hidden states and the pooled first position of each text."""
    weights = {name.removeprefix("bert."): values.astype(np.float64) for name, values in tensors.items()}
    epsilon, activate = config["layer_norm_eps"], ACTIVATIONS[config["hidden_act"]]

    def dense(x, name):
        return formulas.dense(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return formulas.layer_norm(x, weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], epsilon)

    words = weights["embeddings.word_embeddings.weight"][input_ids]
    positions = weights["embeddings.position_embeddings.weight"][: input_ids.shape[1]]
    segments = weights["embeddings.token_type_embeddings.weight"][token_type_ids]
    hidden = norm(words + positions + segments, "embeddings")
    mask = np.where(attention_mask > 0, 0.0, -np.inf)[:, None, None]
    for layer in (f"encoder.layer.{number}" for number in range(config["num_hidden_layers"])):
        query, key, value = (dense(hidden, f"{layer}.attention.self.{name}") for name in ("query", "key", "value"))
        attended = formulas.attention(query, key, value, mask, config["num_attention_heads"])
        hidden = norm(dense(attended, f"{layer}.attention.output.dense") + hidden, f"{layer}.attention.output")
        widened = activate(dense(hidden, f"{layer}.intermediate.dense"))
        hidden = norm(dense(widened, f"{layer}.output.dense") + hidden, f"{layer}.output")
    pooled = np.tanh(dense(hidden[:, 0], "pooler.dense")) if "pooler.dense.weight" in weights else None
    return hidden, pooled


def pool(hidden, pooled, attention_mask, pooling):
    if pooling == "pooler":
        return pooled
    if pooling == "cls":
        return hidden[:, 0]
    return np.stack([states[visible > 0].mean(0) for states, visible in zip(hidden, attention_mask, strict=True)])
