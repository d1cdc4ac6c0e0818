"""One case for each method of the registry, on a very small BERT, so that each property is tested over all methods."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindpet.models.bert import BertConfig, BertForSequenceClassification
from mindpet.tuning.registry import METHODS
from tests.scale import REPETITION

# Values that fit a network of width 8; whatever is not named has its default.
FIELDS = {
    "lora": {"r": 2, "lora_alpha": 4},
    "adapter": {"bottleneck_size": 3},
    "low_rank_adapter": {"reduction_factor": 2},
    "prefixtuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 5, "dropout_rate": 0.0},
    "ptuning2": {"num_virtual_tokens": 3},
    "vera": {"r": 3},
    "tokens": {"token_indices": (4, 1)},
}
CHANGES_THE_START = {"low_rank_adapter", "prefixtuning", "ptuning2"}
EVERY_METHOD = pytest.mark.parametrize("method", METHODS)

# What every method shares is tested fast for one of each kind: layers, prefixes, tokens, marked parameters.
_KINDS = ("lora", "prefixtuning", "tokens", "bitfit")
EACH_KIND = pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[] if method in _KINDS else REPETITION) for method in METHODS]
)

# A training graph takes seconds to compile; the fast tests have one of each kind: layers, prefixes, tokens.
_TRAINED_FAST = ("lora", "prefixtuning", "tokens")
EVERY_METHOD_TRAINED = pytest.mark.parametrize(
    ("method", "mode"),
    [
        pytest.param(method, mode, marks=[pytest.mark.slow] if slow else [])
        for method in METHODS
        for mode in ("graph", "pynative")
        for slow in [mode == "graph" and method not in _TRAINED_FAST]
    ],
    indirect=["mode"],
)


def config_of(method, **fields):
    """Return a configuration of a method for the small BERT."""
    return METHODS[method].config(**FIELDS.get(method, {}) | fields)


def small_bert(layers=1, seed=0, compute_dtype=mindspore.float32, **fields):
    """Return a BERT with random weights and biases and without dropout; two with the same seed are equal."""
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes | fields, num_hidden_layers=layers, max_position_embeddings=8, num_labels=3)
    network = BertForSequenceClassification(config, compute_dtype=compute_dtype)
    generator = np.random.default_rng(seed)
    for parameter in network.get_parameters():
        values = generator.normal(0, 0.3, parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(values + 1 if parameter.name.endswith("gamma") else values))
    network.set_train(False)
    return network


def batch(rows=2, length=4):
    """Return input_ids, attention_mask (the last token of each row is padding) and token_type_ids."""
    ids = np.random.default_rng(1).integers(1, 10, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.int32)
    mask[:, -1] = 0
    return Tensor(ids), Tensor(mask), Tensor(np.zeros((rows, length), np.int32))


def move_adapter(network, seed=2):
    """Give everything that is trained another value, as training would."""
    generator = np.random.default_rng(seed)
    for parameter in network.trainable_params():
        values = parameter.asnumpy() + generator.normal(0, 0.1, parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(values, parameter.dtype))
