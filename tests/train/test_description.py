from functools import partial

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindpet import kernels
from mindpet.models._layers import Dense
from mindpet.train.description import describe_for_good
from mindpet.train.methods import HEAD
from mindpet.train.optimizer import build_optimizer
from mindpet.train.prepare import is_head
from mindpet.train.step import TrainStep
from mindpet.tuning.accelerate import accelerate
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.dropout import Dropout
from tests.methods import EVERY_METHOD, config_of, small_bert


def _step(method="lora", seed=0, steps=4, decay=0.01, of_the_step=0, scale_loss=False, network=None, **fields):
    """Return the cell of a training step on the small BERT; `seed` is that of its weights and rates."""
    mindspore.set_seed(0)  # a dropout takes its seed from this one
    network = network or small_bert(layers=2, seed=seed, attention_probs_dropout_prob=0.1)
    get_peft_model(network, config_of(method, modules_to_save=[HEAD], **fields))
    accelerate(network)
    rates = {"learning_rate": 0.01 + seed, "head_learning_rate": 0.01, "warmup_ratio": 0.0, "weight_decay": decay}
    optimizer = build_optimizer(network, steps=steps, is_head=is_head, **rates)
    return TrainStep(network, optimizer, scale_loss=scale_loss, seed=of_the_step).cell


def _bert(cell):
    return cell.network.network.bert


@EVERY_METHOD
def test_two_steps_of_a_method_are_described_alike_whatever_their_values(method):
    descriptions = [describe_for_good(_step(method, seed=seed)) for seed in (0, 1)]
    assert descriptions[0] == descriptions[1] is not None


def test_a_step_of_other_methods_or_precision_is_another():
    methods = ("lora", "adapter", "bitfit", "ptuning2", "ia3")
    descriptions = [describe_for_good(_step(method)) for method in methods]
    descriptions += [describe_for_good(_step(network=small_bert(layers=2, compute_dtype=mindspore.float16)))]
    assert None not in descriptions
    assert len(set(descriptions)) == len(descriptions)


_OTHER_STEPS = {
    "a rank": {"r": 3},
    "a scale": {"lora_alpha": 5},
    "a dropout of the method": {"lora_dropout": 0.1},
    "what is trained beside": {"bias": "all"},
    "the seed of the masks": {"of_the_step": 1},
    "the length of the schedule": {"steps": 5},
    "the decay": {"decay": 0.02},
}


@pytest.mark.parametrize("change", _OTHER_STEPS)
def test_a_step_that_was_made_otherwise_is_another(change):
    assert describe_for_good(_step(**_OTHER_STEPS[change])) not in (None, describe_for_good(_step()))


def _freeze_a_bias(cell):
    _bert(cell).encoder.layer[0].attention.self.query.mindpet_delta_lora_a.requires_grad = False


def _rename(cell):
    _bert(cell).encoder.layer[1].output.dense.weight.name = "other"


def _exchange_parameters(cell):
    first, second = _bert(cell).encoder.layer
    first.output.dense.weight, second.output.dense.weight = second.output.dense.weight, first.output.dense.weight


def _constant(cell):
    _bert(cell).embeddings.position_ids = Tensor(np.arange(1, 9, dtype=np.int32)[None])


def _drop_with_other_rate(cell):
    layer = _bert(cell).encoder.layer[1]
    layer.output.dropout = Dropout(0.2)


_CHANGES = {
    "what trains": _freeze_a_bias,
    "a name": _rename,
    "which parameters": _exchange_parameters,
    "a constant": _constant,
    "a number": lambda cell: setattr(_bert(cell).encoder.layer[1].output.LayerNorm, "epsilon", 0.5),
    "a function": lambda cell: setattr(_bert(cell).encoder.layer[0].intermediate, "activate", kernels.gelu_tanh),
    "a dropout": _drop_with_other_rate,
    "training": lambda cell: cell.network.network.set_train(False),
    "a primitive": lambda cell: setattr(_bert(cell).encoder.layer[0].output.dense, "matmul", ops.MatMul()),
    "a primitive's attribute": lambda cell: cell.network.network.classifier.matmul.add_prim_attr("recompute", True),
    "a child": lambda cell: setattr(_bert(cell).encoder.layer[0].output, "dense", nn.Dense(12, 8)),
    "a twin less": lambda cell: object.__setattr__(_bert(cell).encoder.layer[0].output.dense, "__class__", Dense),
    "a new cell": lambda cell: setattr(_bert(cell), "shared_prefix", nn.ReLU()),
    "precision": lambda cell: cell.network.network.classifier.to_float(mindspore.float16),
    "the optimizer's number": lambda cell: setattr(cell.optimizer, "eps", Tensor(np.array([1e-3], np.float32))),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_step_that_was_changed_is_another(change):
    cell = _step()
    before = describe_for_good(cell)
    _CHANGES[change](cell)
    assert before is not None
    assert describe_for_good(cell) != before


class _OwnLayer(nn.Cell):
    def construct(self, x):
        return x


class _OwnDense(nn.Dense):
    computes_as_dense = True


def _accelerated_class_of_the_user(cell):
    cell.network.network.extra = _OwnDense(3, 3)
    accelerate(cell.network.network)


def _hook(cell):
    cell.network.network.classifier.register_forward_hook(lambda layer, inputs, output: output)


def _give_two_the_same_name(cell):
    first, second = _bert(cell).encoder.layer
    second.output.dense.weight.name = first.output.dense.weight.name


_INCOMPARABLE = {
    "a name of two Parameters": _give_two_the_same_name,
    "a Parameter outside of the cells": lambda cell: setattr(
        cell.network.network.classifier.matmul, "factor", Parameter(Tensor(1.0, mindspore.float32))
    ),
    "a class": lambda cell: setattr(cell.network.network, "extra", _OwnLayer()),
    "a parent of a twin": _accelerated_class_of_the_user,
    "a hook": _hook,
    "a lambda": lambda cell: setattr(_bert(cell), "function", lambda x: x),
    "a function of the user": lambda cell: setattr(_bert(cell), "function", _step),
    "a partial of one": lambda cell: setattr(_bert(cell), "function", partial(_step, 1)),
    "a set": lambda cell: setattr(_bert(cell), "numbers", {1, 2}),
    "an object": lambda cell: setattr(_bert(cell), "thing", object()),
}


@pytest.mark.parametrize("change", _INCOMPARABLE)
def test_what_cannot_be_compared_between_processes_is_not_described(change):
    cell = _step()
    _INCOMPARABLE[change](cell)
    assert describe_for_good(cell) is None


def test_a_loss_scale_is_not_described():
    """A kept graph reads Parameters by their names in the cell, and those of the scale are not there."""
    assert describe_for_good(_step(scale_loss=True)) is None


def test_a_function_that_is_not_the_one_of_its_name_is_not_described(monkeypatch):
    cell = _step()
    assert describe_for_good(cell) is not None
    monkeypatch.setattr("mindpet.kernels.operations.gelu", kernels.gelu_tanh)
    assert describe_for_good(cell) is None
