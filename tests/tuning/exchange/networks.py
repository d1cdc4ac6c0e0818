"""Small networks with something attached, and what can be compared of them."""

import mindspore
import numpy as np
from mindspore import Tensor, nn

import mindpet
from mindpet.tuning.state import adapter_parameters, state_of
from tests.methods import batch


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
    return network(*batch()).asnumpy()


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
