"""Attaching and detaching on a network that has run, been trained and been wrapped: the new result, or an error."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.experimental import optim
from mindspore.train import Model

from mindpet.delta.lora import LoRADense
from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.config import LoraConfig
from mindpet.tuning.state import require_state, state_of
from mindpet.utils.exceptions import CompiledNetworkError, InputError

CONFIG = LoraConfig(r=1, target_modules=["layer"])


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dense(2, 2)

    def construct(self, x):
        return self.layer(x)


class _Decorated(_Network):
    @mindspore.jit
    def construct(self, x):
        return self.layer(x)


class _Around(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x):
        return self.network(x)


class _Step:
    """An object with a compiled method."""

    def __init__(self, network):
        self.network = network

    @mindspore.jit
    def run(self, x):
        return self.network(x)


def _closure(network, **options):
    @mindspore.jit(**options)
    def run(x):
        return network(x)

    return run


GLOBAL = None


@mindspore.jit
def _run_global(x):
    return GLOBAL(x)


def _find_global(network):
    global GLOBAL
    GLOBAL = network
    return _run_global


def _model(network):
    model = Model(network, loss_fn=nn.MSELoss(), metrics={"loss"})
    return lambda x: model.predict(x)


def _gradient(network):
    def total(x):
        return network(x).sum()

    step = mindspore.value_and_grad(total, 0)
    return lambda x: step(x)[0]


WRAPPERS = {
    "the network": lambda network: network,
    "a cell around it": _Around,
    "a list of cells": lambda network: nn.SequentialCell(network),
    "a Model": _model,
    "jit by closure": _closure,
    "jit by global": _find_global,
    "jit of a method": lambda network: _Step(network).run,
    "jit of the network": mindspore.jit,
    "a gradient": _gradient,
}


def _input():
    return Tensor(np.array([[1.0, 2.0]]), mstype.float32)


def _adapt(network):
    get_peft_model(network, CONFIG)
    network.layer.mindpet_delta_lora_b.set_data(Tensor(np.ones((2, 1)), mstype.float32))


@pytest.fixture(autouse=True)
def no_optimizer_of_other_tests():
    gc.collect()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_ran_before_sees_the_attached_and_then_the_detached_network(wrapper, mode):
    network = _Network()
    run = WRAPPERS[wrapper](network)
    before = run(_input()).asnumpy()
    _adapt(network)
    branch = 8 * (_input().asnumpy() @ network.layer.mindpet_delta_lora_a.asnumpy().T)
    expected = before + (2 * branch.sum() if wrapper == "a gradient" else branch)  # the gradient's value is a sum
    np.testing.assert_allclose(run(_input()).asnumpy(), expected, rtol=1e-5)
    assert np.abs(branch).max() > 1e-3
    detach(network)
    np.testing.assert_array_equal(run(_input()).asnumpy(), before)


@pytest.mark.slow
def test_a_function_that_was_traced_sees_it(tmp_path):
    # In a process of its own: MindSpore's tracing reads the source of every caller, which pytest's frames lack.
    script = tmp_path / "traced.py"
    script.write_text(
        "from tests.tuning import test_compiled as here\n"
        "network = here._Network()\n"
        "run = here._closure(network, capture_mode='trace')\n"
        "before = run(here._input()).asnumpy()\n"
        "here._adapt(network)\n"
        "assert abs(run(here._input()).asnumpy() - before).max() > 1e-3\n"
        "here.detach(network)\n"
        "assert (run(here._input()).asnumpy() == before).all()\n"
    )
    subprocess.run(
        [sys.executable, script], check=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    )


def test_a_decorated_network_sees_it_too(mode):
    network = _Decorated()
    before = network(_input()).asnumpy()
    _adapt(network)
    assert np.abs(network(_input()).asnumpy() - before).max() > 1e-3


def test_both_phases_see_it(mode):
    network = _Network()
    for training in (True, False):
        network.set_train(training)
        before = network(_input()).asnumpy()
    _adapt(network)
    for training in (True, False):
        network.set_train(training)
        assert np.abs(network(_input()).asnumpy() - before).max() > 1e-3


def _refused(network, said):
    before = list(network.cells_and_names())
    with pytest.raises(CompiledNetworkError, match=said) as caught:
        get_peft_model(network, CONFIG)
    assert isinstance(caught.value, InputError)
    assert list(network.cells_and_names()) == before and state_of(network) is None
    assert all(item.requires_grad for item in network.get_parameters())


def _train_step(network):
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.MSELoss()), nn.SGD(network.trainable_params(), 1e-3))
    step(_input(), _input() * 3)
    return step


def _trained_model(network):
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    model = Model(network, nn.MSELoss(), optimizer)
    data = mindspore.dataset.NumpySlicesDataset([_input().asnumpy()[0]] * 2, column_names=["x"], shuffle=False)
    data = data.map(lambda x: (x, x), ["x"], ["x", "y"]).batch(1)
    model.train(1, data, dataset_sink_mode=False)
    return model


@pytest.mark.parametrize(
    "train",
    [
        lambda network: nn.Adam(network.trainable_params()),
        lambda network: nn.Adam([{"params": network.trainable_params(), "lr": 0.1}]),
        lambda network: optim.AdamW(network.trainable_params(), lr=0.1),
        _train_step,
        _trained_model,
    ],
    ids=["optimizer", "groups", "experimental", "TrainOneStepCell", "Model"],
)
def test_a_living_optimizer_is_refused_and_a_dead_one_is_not(train, mode):
    network = _Network()
    holder = train(network)
    _refused(network, "a living optimizer .* holds parameters of the network.*make the optimizer afterwards")
    del holder
    get_peft_model(network, CONFIG)
    if train is _train_step:
        before = network.layer.mindpet_delta_lora_b.asnumpy().copy()
        train(network)
        assert (network.layer.mindpet_delta_lora_b.asnumpy() != before).any()


class _Owner:
    """Holds an optimizer as users do."""

    def __init__(self, optimizer):
        self.parts = {"optimizer": [optimizer]}


KEPT = []


@pytest.fixture
def nothing_frozen():
    """Show this module itself, which conftest.py hides, to the garbage collector."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_an_optimizer_is_found_wherever_it_is_kept(nothing_frozen):
    network = _Network()
    optimizer = nn.Adam(network.trainable_params())
    owner = _Owner(optimizer)
    del optimizer
    _refused(network, "a living optimizer")
    KEPT.append(owner)
    del owner
    _refused(network, "a living optimizer")
    owner = iter([KEPT.pop()])
    _refused(network, "a living optimizer")
    del owner
    get_peft_model(network, CONFIG)


def test_the_optimizer_of_another_network_is_no_obstacle():
    optimizer = nn.Adam(_Network().trainable_params())
    assert isinstance(get_peft_model(_Network(), CONFIG).layer, LoRADense)
    del optimizer


def test_an_optimizer_that_was_never_finished_is_no_obstacle():
    unfinished = nn.SGD.__new__(nn.SGD)
    assert not hasattr(unfinished, "parameters")
    network = get_peft_model(_Network(), CONFIG)
    detach(network)
    assert type(network.layer) is nn.Dense


def test_a_function_kept_as_bytecode_is_refused_and_a_new_one_is_right(mode):
    network = _Network()
    run = _closure(network, capture_mode="bytecode")
    before = run(_input()).asnumpy()
    _refused(network, "made by ms.jit.capture_mode='bytecode'.*define it afterwards")
    del run
    _adapt(network)
    run = _closure(network, capture_mode="bytecode")
    assert np.abs(run(_input()).asnumpy() - before).max() > 1e-3
    del run


def test_a_step_compiled_before_goes_on_training_the_adapter_after_another_network_changed(mode):
    network = get_peft_model(_Network(), CONFIG)
    step = _train_step(network)
    before = network.layer.mindpet_delta_lora_b.asnumpy().copy()
    get_peft_model(_Network(), CONFIG)  # forgets every graph
    step(_input(), _input() * 3)
    assert (network.layer.mindpet_delta_lora_b.asnumpy() != before).any()
    assert require_state(network).replacements[0].cell is network.layer
