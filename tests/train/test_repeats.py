import gc
from contextlib import nullcontext

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindpet.data.batches import Batch
from mindpet.train import step as step_module
from mindpet.train.description import describe
from mindpet.train.methods import HEAD
from mindpet.train.optimizer import build_optimizer
from mindpet.train.prepare import is_head
from mindpet.train.repeats import share_equal_layers
from mindpet.train.step import TrainStep
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.dropout import Dropout
from tests.methods import batch, config_of, small_bert


class _Layer(nn.Cell):
    """Something of everything: parameters, a constant, a number, primitives, dropout and a child of its own."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((3, 3), np.float32)))
        self.bias = Parameter(Tensor(np.ones(3, np.float32)))
        self.constant = Tensor(np.ones(3, np.float32))
        self.factor = 2.0
        self.matmul = ops.MatMul()
        self.function = ops.relu
        self.dropout = Dropout(0.5)
        self.dense = nn.Dense(3, 3)

    def construct(self, x):
        return self.dense(self.dropout(self.function(self.matmul(x, self.weight) * self.factor + self.bias)))


class _Network(nn.Cell):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.CellList([_Layer() for _ in range(layers)])


def _another_bias(layer):
    layer.bias = layer.dense.bias


def _hook(layer):
    layer.dense.register_forward_hook(lambda cell, inputs, output: output)


_CHANGES = {
    "nothing": lambda layer: None,
    "values": lambda layer: layer.weight.set_data(Tensor(np.zeros((3, 3), np.float32))),
    "a name": lambda layer: setattr(layer.weight, "name", "other"),
    "the number": lambda layer: setattr(layer, "factor", 3.0),
    "the type of the number": lambda layer: setattr(layer, "factor", 2),
    "the constant": lambda layer: setattr(layer, "constant", Tensor(np.array([1, 1, 2], np.float32))),
    "a primitive": lambda layer: setattr(layer, "matmul", ops.MatMul(transpose_b=True)),
    "a primitive's attribute": lambda layer: layer.matmul.add_prim_attr("recompute", True),
    "a function": lambda layer: setattr(layer, "function", ops.silu),
    "the rate of a dropout": lambda layer: setattr(layer, "dropout", Dropout(0.4)),
    "training": lambda layer: layer.dense.set_train(),
    "what trains": lambda layer: setattr(layer.dense.weight, "requires_grad", False),
    "a shape": lambda layer: setattr(layer, "dense", nn.Dense(3, 3, has_bias=False)),
    "a dtype": lambda layer: layer.weight.set_dtype(mindspore.float16),
    "a shared parameter": _another_bias,
    "a child": lambda layer: setattr(layer, "dense", nn.Dense(3, 3, activation="relu")),
    "a new attribute": lambda layer: setattr(layer, "prefix", nn.ReLU()),
    "precision": lambda layer: layer.dense.to_float(mindspore.float16),
    "a hook": _hook,
}


@pytest.mark.parametrize("change", _CHANGES)
def test_layers_are_equal_but_for_values_and_names_of_parameters(change):
    one, other = _Layer(), _Layer()
    for layer in (one, other):  # its primitive has a seed of its own, and a seed is a constant
        layer.dropout = Dropout(0.0)
    _CHANGES[change](other)
    assert (describe(one) == describe(other)) == (change in ("nothing", "values", "a name"))


def test_dropouts_with_masks_of_their_own_are_not_equal():
    one, other = Dropout(0.5), Dropout(0.5)
    count = Parameter(Tensor(0, mindspore.int32), requires_grad=False)
    one.use_mask(count, seed=0, layer=0)
    other.use_mask(count, seed=0, layer=1)
    assert describe(one) != describe(other)


def test_only_equal_layers_are_marked_and_only_within():
    network = _Network(4)
    for layer in network.layers:
        layer.dropout = Dropout(0.0)
    network.layers[2].factor = 3.0
    network.once_more = nn.CellList(list(network.layers)[:2])  # in two places, as a shared dropout is
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    with share_equal_layers(network):
        marks = [getattr(layer, "cell_init_args", "") for layer in network.layers]
        assert not gc.isenabled()
    assert marks[0] == marks[1] == marks[3] != ""
    assert marks[2] == ""
    assert not any(getattr(layer, "cell_init_args", "") or hasattr(layer, "no_inline") for layer in network.layers)
    assert gc.isenabled()


def test_objects_are_hidden_from_the_garbage_collector_only_within():
    gc.unfreeze()
    with share_equal_layers(_Network(1)):
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    gc.freeze()
    hidden = gc.get_freeze_count()
    with share_equal_layers(_Network(1)):
        pass
    assert gc.get_freeze_count() == hidden  # what others have hidden stays so


def _lose_precision(network):
    network.bert.encoder.layer[1].output.LayerNorm.epsilon = 0.5


def _losses(network, change):
    """Return the losses of steps on two shapes, with a change of one layer before the second one is compiled."""
    get_peft_model(network, config_of("lora", modules_to_save=[HEAD]))
    rates = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.01}
    step = TrainStep(network, build_optimizer(network, steps=4, is_head=is_head, **rates), scale_loss=False)
    losses = []
    for rows in (2, 3):
        tensors = [tensor.asnumpy() for tensor in batch(rows)]
        rows_of_one_shape = Batch(*tensors, np.arange(rows, dtype=np.int32) % 3, np.arange(rows))
        losses += [step(rows_of_one_shape).loss for _ in range(2)]
        change(network)
    return losses


def test_steps_compute_the_same_with_shared_layers_and_see_what_changes_between_two_shapes(monkeypatch):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_seed(0)
    shared = _losses(small_bert(layers=2), _lose_precision)
    monkeypatch.setattr(step_module, "share_equal_layers", lambda network: nullcontext())
    mindspore.set_seed(0)
    assert shared == _losses(small_bert(layers=2), _lose_precision)
