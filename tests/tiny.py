"""A very small BERT folder and a very small task, for tests that need files but no meaning."""

import json

import numpy as np
from safetensors.numpy import save_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "fine", "bad", "poor", "day", "film", "the", "a", "very"]
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "vocab_size": len(WORDS),
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def bert_tensors(config=CONFIG, seed=0):
    """Return random weights of the BERT that `config` describes, by their Hugging Face names."""
    generator = np.random.default_rng(seed)
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
    }
    dense = {"pooler.dense": (hidden, hidden)}
    norms = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        dense |= {f"{layer}.attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
        dense |= {f"{layer}.attention.output.dense": (hidden, hidden)}
        dense |= {f"{layer}.intermediate.dense": (wide, hidden), f"{layer}.output.dense": (hidden, wide)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(hidden, np.float32), f"{name}.bias": np.zeros(hidden, np.float32)}
    return tensors


def write_bert(folder, config=CONFIG, seed=0):
    """Write a model folder as Hugging Face lays it out, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_file(bert_tensors(config, seed), folder / "model.safetensors")
    return folder


def write_task(file, count=60):
    """Write `count` labelled texts as JSON lines, good and bad ones in turn, and return the file."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(count):
        label, word = (("up", "good fine"), ("down", "bad poor"))[number % 2]
        filler = generator.choice(["day", "film", "the", "a", "very"], size=3)
        lines.append(
            json.dumps({"text": f"{filler[0]} {generator.choice(word.split())} {' '.join(filler)}", "label": label})
        )
    file.write_text("\n".join(lines) + "\n")
    return file


def write_texts(file):
    """Write 320 labelled texts, short ones and long ones, so that batches have two widths."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(320):
        label, words = (("up", ("good", "fine")), ("down", ("bad", "poor")))[number % 2]
        fillers = generator.choice(["day", "film", "the", "a", "very"], size=2 if number % 4 < 2 else 11)
        lines.append(json.dumps({"text": f"{generator.choice(words)} {' '.join(fillers)}", "label": label}))
    file.write_text("\n".join(lines))
    return file
