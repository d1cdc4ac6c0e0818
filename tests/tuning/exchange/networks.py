"""Small networks with something attached, and what can be compared of them."""

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

import mindpet
from mindpet.models.bert import BertConfig, BertForSequenceClassification
from mindpet.tuning.registry import METHODS
from mindpet.tuning.state import adapter_parameters, state_of
from tests.tiny import CONFIG

HIDDEN = 12
_FOREIGN = ("architectures", "model_type", "pad_token_id")
# The defaults are for hidden states of hundreds of numbers.
_SMALL = {
    "lora": {"r": 2, "lora_alpha": 6},
    "adapter": {"bottleneck_size": 3},
    "low_rank_adapter": {"reduction_factor": 4},
    "prefixtuning": {"num_virtual_tokens": 2, "encoder_hidden_size": 5},
    "ptuning2": {"num_virtual_tokens": 2, "encoder_hidden_size": 5, "prefix_projection": True},
}
CONFIGS = {
    name: method.config(**_SMALL.get(name, {}), modules_to_save=("classifier",)) for name, method in METHODS.items()
}


def bert(seed=0):
    """Return a random BERT with one layer and three classes; the same seed gives the same one."""
    np.random.seed(seed)
    return BertForSequenceClassification(
        BertConfig(**{key: value for key, value in CONFIG.items() if key not in _FOREIGN}, num_labels=3)
    )


class Stack(nn.Cell):
    """Two dense layers and a head; it has no `config`, so that only its cells can be probed."""

    def __init__(self, seed=0, dtype=mindspore.float32, activation="relu"):
        super().__init__()
        np.random.seed(seed)
        self.first = nn.Dense(6, 8, activation=activation, dtype=dtype)
        self.norm = nn.LayerNorm((8,), dtype=dtype)
        self.second = nn.Dense(8, 5, dtype=dtype)
        self.head = nn.Dense(5, 3, dtype=dtype)
        for parameter in self.get_parameters():
            values = np.random.normal(0, 0.4, parameter.shape)
            parameter.set_data(Tensor(values, mindspore.float32).astype(dtype))

    def construct(self, x):
        return self.head(self.second(self.norm(self.first(x))))


def lora(**changes):
    """Return LoRA for a `Stack`."""
    fields = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "second"], "modules_to_save": ["head"]} | changes
    return mindpet.LoraConfig(**fields)


def fill(network, seed=1):
    """Give what is attached random values, as training does."""
    generator = np.random.default_rng(seed)
    for parameter in adapter_parameters(network).values():
        values = generator.normal(0, 0.3, parameter.shape)
        parameter.set_data(Tensor(values, mindspore.float32).astype(parameter.dtype))
    return network


def trained(network, config, seed=1, **options):
    """Attach `config` to a network and give it random values."""
    return fill(mindpet.get_peft_model(network, config, **options), seed)


def outputs(network):
    """Return what a network gives for some input, as an array."""
    network.set_train(False)
    if isinstance(network, Stack):
        x = np.random.RandomState(3).normal(size=(4, 6))
        return network(Tensor(x, network.first.weight.dtype)).astype(mindspore.float32).asnumpy()
    ids = Tensor(np.array([[2, 5, 9, 3], [2, 7, 9, 3]], np.int32))
    return network(ids, ops.ones_like(ids), ops.zeros_like(ids)).asnumpy()


def values(network):
    """Return the bytes of every parameter by name."""
    return {parameter.name: parameter.get_bytes() for parameter in network.get_parameters()}


def adapter_values(network):
    """Return the bytes of the adapter's parameters by name."""
    return {name: parameter.get_bytes() for name, parameter in adapter_parameters(network).items()}


def snapshot(network):
    """Return all of a network that loading could change."""
    return {
        "values": values(network),
        "objects": {parameter.name: id(parameter) for parameter in network.get_parameters()},
        "trainable": {parameter.name: parameter.requires_grad for parameter in network.get_parameters()},
        "cells": {path: id(cell) for path, cell in network.cells_and_names()},
        "training": {path: cell.training for path, cell in network.cells_and_names()},
        "state": id(state_of(network)),
        "mode": mindspore.get_context("mode"),
        "random": np.random.get_state()[1].tobytes(),
    }
