from pathlib import Path

import numpy as np
import pytest

from mindpet.data.batches import Batch
from mindpet.train.methods import FULL, HEAD, METHOD_NAMES
from mindpet.train.optimizer import build_optimizer
from mindpet.train.prepare import is_head
from mindpet.train.resume import put_back
from mindpet.train.step import TrainStep
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.names import STATE_MARK
from tests.methods import batch, config_of, small_bert

STEPS = 8


def _values(parameters):
    return {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


def _attached(method):
    """Return a small BERT with a method attached whose dropouts, if it has any, drop something."""
    network = small_bert(layers=2)
    if method != FULL:
        dropouts = {name: 0.3 for name in config_of(method).model_fields if "dropout" in name}
        get_peft_model(network, config_of(method, modules_to_save=[HEAD], **dropouts))
    return network


def _take(step, count):
    """Take steps on one batch and return the losses."""
    inputs = [values.asnumpy() for values in batch(rows=4)]
    texts = Batch(*inputs, labels=np.array([0, 1, 2, 1], np.int32), indices=np.arange(4))
    return [step(texts).loss for _ in range(count)]


@pytest.mark.parametrize("mode", ["graph"], indirect=True)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_state_of_a_step_is_all_that_the_next_ones_depend_on(mode, method):
    network = _attached(method)
    frozen = _values(parameter for parameter in network.get_parameters() if not parameter.requires_grad)
    rates = {"learning_rate": 0.01, "head_learning_rate": 0.01, "warmup_ratio": 0.1, "weight_decay": 0.01}
    optimizer = build_optimizer(network, steps=STEPS, is_head=is_head, **rates)
    step = TrainStep(network, optimizer, scale_loss=False, seed=3)
    start = _values(network.trainable_params())
    losses = _take(step, 2)
    saved = _values(step.state().values())
    losses += _take(step, 2)
    ended = _values(step.state().values())
    put_back(saved, step.state(), Path("state"))
    again = _take(step, 2)
    assert again == losses[2:]
    for name, value in _values(step.state().values()).items():
        np.testing.assert_array_equal(value, ended[name], err_msg=name)
    assert all((ended[name] != value).any() for name, value in start.items())
    after = _values(network.get_parameters())
    for name, value in frozen.items():
        assert STATE_MARK in name or (after[name] == value).all(), name
