"""An adapter of its own for each example: as if each had been run alone, and a new choice compiles nothing."""

import inspect

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindpet.tuning.adapters import add_adapter, current_values, set_adapter
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.capacity import write_adapter
from mindpet.tuning.config import LoraConfig
from mindpet.tuning.merge import merge, unload
from mindpet.tuning.stacking import set_adapter_index, stack_adapters, unstack_adapters
from mindpet.tuning.state import require_state
from mindpet.utils.exceptions import InputError
from tests.methods import EVERY_METHOD, config_of, small_bert

X = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)


class _Network(nn.Cell):
    """Two layers of which the second sees rows without the axis of the batch."""

    def __init__(self, activation=None):
        super().__init__()
        generator = np.random.default_rng(7)
        self.first = nn.Dense(5, 6, activation=activation)
        self.second = nn.Dense(6, 2)
        for parameter in self.get_parameters():
            parameter.set_data(Tensor(generator.normal(size=parameter.shape).astype(np.float32)))

    def construct(self, x):
        hidden = self.first(x).reshape((-1, 6))
        return self.second(hidden).reshape((x.shape[0], -1, 2))


def _shake(network, seed):
    state = require_state(network)
    generator = np.random.default_rng(seed)
    values = current_values(state, state.active)
    changed = {name: generator.normal(size=one.shape).astype(np.float32) for name, one in values.items() if one.ndim}
    write_adapter(state, values | changed)


def _three_adapters(network=None):
    network = get_peft_model(network or _Network("relu"), LoraConfig(r=3, target_modules=["first", "second"]))
    _shake(network, 1)
    add_adapter(network, "b", LoraConfig(r=1, lora_alpha=2, target_modules=["second"]))
    add_adapter(network, "c", LoraConfig(r=2, lora_alpha=5, target_modules=["first", "second"]))
    for seed, name in enumerate(("b", "c"), 2):
        set_adapter(network, name)
        _shake(network, seed)
    set_adapter(network, "default")
    return network


def _one_by_one(network, names):
    outputs = []
    for name, example in zip(names, X, strict=True):
        set_adapter(network, name)
        outputs.append(network(Tensor(example[None])).asnumpy())
    set_adapter(network, "default")
    return np.concatenate(outputs)


@pytest.mark.parametrize("jitted", [False, True])
def test_each_example_has_its_own_adapter_and_another_choice_compiles_nothing(mode, jitted, monkeypatch):
    network = _three_adapters()
    choices = (["c", "default", "b", "c"], ["b", "b", "default", "c"])
    expected = [_one_by_one(network, names) for names in choices]
    stack_adapters(network)
    run = mindspore.jit(network) if jitted else network
    set_adapter_index(network, choices[0])
    np.testing.assert_allclose(run(Tensor(X)).asnumpy(), expected[0], rtol=1e-4, atol=1e-4)
    read = []
    original = inspect.getsourcelines
    monkeypatch.setattr(inspect, "getsourcelines", lambda item: read.append(item) or original(item))
    set_adapter_index(network, choices[1])
    np.testing.assert_allclose(run(Tensor(X)).asnumpy(), expected[1], rtol=1e-4, atol=1e-4)
    set_adapter_index(network, [2, 0, 1, 2])
    np.testing.assert_allclose(run(Tensor(X)).asnumpy(), expected[0], rtol=1e-4, atol=1e-4)
    assert not read


def test_another_batch_needs_another_index(mode):
    network = _three_adapters()
    expected = _one_by_one(network, ["c", "default", "b", "c"])
    before = network(Tensor(X)).asnumpy()
    stack_adapters(network, ["c", "default", "b"])
    np.testing.assert_allclose(network(Tensor(X)).asnumpy()[0], expected[0], rtol=1e-4, atol=1e-4)
    set_adapter_index(network, ["c", "default", "b", "c"])
    network(Tensor(X))
    set_adapter_index(network, ["b", "c"])
    np.testing.assert_allclose(network(Tensor(X[2:])).asnumpy(), expected[2:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="9 rows"):
        network(Tensor(X[:3]))
    unstack_adapters(network)
    np.testing.assert_array_equal(network(Tensor(X)).asnumpy(), before)


def test_stacked_adapters_belong_to_no_file_and_train_nothing(mode):
    network = _three_adapters()
    stack_adapters(network)
    assert not network.trainable_params()
    network.set_train()
    with pytest.raises(ValueError, match="for inference only"):
        network(Tensor(X))


def test_what_cannot_be_done_meanwhile_is_refused():
    network = _three_adapters()
    with pytest.raises(InputError, match="not stacked"):
        set_adapter_index(network, [0])
    with pytest.raises(InputError, match="each adapter once"):
        stack_adapters(network, ["b", "b"])
    stack_adapters(network, ["b", "c"])
    changes = [lambda: set_adapter(network, "b"), lambda: stack_adapters(network)]
    for change in (*changes, lambda: merge(network), lambda: unload(network)):
        with pytest.raises(InputError, match="unstack_adapters"):
            change()
    for index in (["default"], [2], [True], [-1]):
        with pytest.raises(InputError, match="stacked are b, c, also known as 0 to 1"):
            set_adapter_index(network, index)
    with pytest.raises(InputError, match="no entry"):
        set_adapter_index(network, [])
    unstack_adapters(network)
    unload(network)
    np.testing.assert_array_equal(network(Tensor(X)).asnumpy(), _Network("relu")(Tensor(X)).asnumpy())


def test_heads_that_differ_are_refused():
    config = LoraConfig(r=1, target_modules=["first"], modules_to_save=["second"])
    network = get_peft_model(_Network(), config)
    add_adapter(network, "b", config)
    stack_adapters(network)
    unstack_adapters(network)
    network.second.bias.set_data(Tensor(np.ones(2, np.float32)))
    with pytest.raises(InputError, match=r"second.bias of the network itself .* default and b"):
        stack_adapters(network)


@EVERY_METHOD
def test_other_methods_than_lora_are_refused(method):
    network = get_peft_model(small_bert(), config_of(method))
    if method == "lora":
        stack_adapters(network)
    else:
        with pytest.raises(InputError, match=r"only LoRA on dense layers|nothing to choose"):
            stack_adapters(network)
