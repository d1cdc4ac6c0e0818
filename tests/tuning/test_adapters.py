"""Several adapters by name: what switching gives, that it compiles nothing, what stays untrained, and refusals."""

import copy
import inspect

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.experimental import optim

from mindpet.graph.freeze_utils import count_parameters
from mindpet.tuning.adapters import (
    active_adapter,
    add_adapter,
    current_values,
    delete_adapter,
    disable_adapter,
    enable_adapter,
    list_adapters,
    set_adapter,
)
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.capacity import slots_by_name, write_adapter
from mindpet.tuning.config import AdapterConfig, IA3Config, LoraConfig
from mindpet.tuning.exchange.load import load_adapter
from mindpet.tuning.exchange.save import save_adapter
from mindpet.tuning.merge import merge, unload, unmerge
from mindpet.tuning.state import require_state
from mindpet.tuning.values import crop, pad
from mindpet.utils.exceptions import InputError
from tests.methods import EACH_KIND, EVERY_METHOD, EVERY_METHOD_TRAINED, METHODS, batch, config_of, small_bert

# What the second adapter of each method has otherwise than the first.
OTHERS = {
    "lora": {"r": 1, "lora_alpha": 3, "use_rslora": True, "alpha_pattern": {"query": 2}},
    "adapter": {"bottleneck_size": 2},
    "low_rank_adapter": {"low_rank_size": 2},
    "prefixtuning": {"num_virtual_tokens": 1},
    "ptuning2": {"num_virtual_tokens": 2},
    "vera": {"r": 2, "projection_prng_key": 3},
    "tokens": {"token_indices": (7,)},
    "ia3": {"target_modules": ["value"]},
}
ROOM = {"max_rank": 4, "max_tokens": 4}
TARGETS = {"lora": ["query", "value"], "adapter": ["intermediate.dense", "pooler.dense"], "ia3": ["key", "value"]}


def first_config(method):
    return config_of(method, **({"target_modules": TARGETS[method]} if method in TARGETS else {}))


def second_config(method):
    fields = {"target_modules": TARGETS[method][:1]} if method in TARGETS else {}
    return config_of(method, **fields | OTHERS.get(method, {}))


def shake(network, seed):
    """Give the active adapter's own values others, as training would."""
    state = require_state(network)
    generator = np.random.default_rng(seed)
    values = {
        name: value + generator.normal(0, 0.1, value.shape).astype(value.dtype)
        if state.parameters[name].requires_grad
        else value
        for name, value in current_values(state, state.active).items()
    }
    write_adapter(state, values)


def two_adapters(method):
    """Return a network with two adapters, of which the first is active."""
    network = small_bert()
    get_peft_model(network, first_config(method), **ROOM, adapter_name="first")
    shake(network, 2)
    add_adapter(network, "second", second_config(method))
    set_adapter(network, "second")
    shake(network, 3)
    set_adapter(network, "first")
    return network


def alone(network, name, config):
    """Return another network that has only this adapter, without room for more."""
    other = get_peft_model(small_bert(), config)
    state = require_state(other)
    values = current_values(require_state(network), name)
    assert state.adapters["default"].shapes == {key: values[key].shape for key in state.adapters["default"].shapes}
    write_adapter(state, values)
    return other


def run_plainly(network):
    """Return the output without compiling, whatever the mode."""
    mode = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    output = network(*batch()).asnumpy()
    mindspore.set_context(mode=mode)
    return output


class Loss(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, *inputs):
        return (self.network(*inputs) ** 2).sum()


@pytest.fixture
def sources(monkeypatch):
    """Count how often MindSpore reads a source, as it does whenever it compiles."""
    read = []
    original = inspect.getsourcelines
    monkeypatch.setattr(inspect, "getsourcelines", lambda item: read.append(item) or original(item))
    return read


def padding(network):
    """Return what lies beyond the active adapter's own values, by name."""
    state = require_state(network)
    shapes = state.adapters[state.active].shapes
    beyond = {}
    for name, slot in slots_by_name(state).items():
        values = slot.parameter.asnumpy()
        own = crop(values, shapes[name], slot.groups) if name in shapes else None
        beyond[name] = values - (0 if own is None else pad(own, values.shape, slot.groups))
    return beyond


@EVERY_METHOD
def test_each_adapter_computes_what_it_computes_alone_and_switching_compiles_nothing(method, sources):
    expected = {"none": small_bert()(*batch()).asnumpy()}
    network = two_adapters(method)
    for name, config in (("first", first_config(method)), ("second", second_config(method))):
        expected[name] = alone(network, name, config)(*batch()).asnumpy()
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    outputs = {"first": network(*batch()).asnumpy()}
    compiled = len(sources)
    assert compiled > 0
    for name in ("second", "first", "second"):
        set_adapter(network, name)
        output = network(*batch()).asnumpy()
        np.testing.assert_array_equal(output, outputs.setdefault(name, output))
    disable_adapter(network)
    outputs["none"] = network(*batch()).asnumpy()
    assert len(sources) == compiled
    assert len(network.compile_cache) == 1
    assert np.abs(outputs["first"] - outputs["second"]).max() > 1e-3
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=1e-5, atol=1e-6)


@EVERY_METHOD_TRAINED
def test_only_an_adapters_own_values_are_trained(method, mode, sources):
    network = two_adapters(method)
    optimizer = nn.AdamWeightDecay(network.trainable_params(), 0.1, weight_decay=0.1)
    step = nn.TrainOneStepCell(Loss(network), optimizer)
    step.set_train()
    step(*batch())
    state, compiled = require_state(network), len(sources)
    first = current_values(state, "first")
    set_adapter(network, "second", optimizer)
    before = current_values(state, "second")
    for _ in range(2):
        step(*batch())
    assert len(sources) == compiled
    assert all(not beyond.any() for beyond in padding(network).values())
    after = current_values(state, "second")
    moved = [name for name in after if not np.array_equal(before[name], after[name])]
    assert moved
    assert all(state.parameters[name].requires_grad for name in moved)
    set_adapter(network, "first")
    assert all(np.array_equal(first[name], values) for name, values in current_values(state, "first").items())


@EACH_KIND
def test_a_disabled_network_computes_what_it_did_before_attaching(method):
    expected = small_bert()(*batch()).asnumpy()
    network = two_adapters(method)
    with_adapter = network(*batch()).asnumpy()
    disable_adapter(network)
    disable_adapter(network)
    assert active_adapter(network) is None
    np.testing.assert_allclose(network(*batch()).asnumpy(), expected, rtol=1e-6, atol=1e-6)
    enable_adapter(network)
    assert active_adapter(network) == "first"
    np.testing.assert_array_equal(network(*batch()).asnumpy(), with_adapter)


@EACH_KIND
def test_a_copy_has_adapters_of_its_own(method):
    network = two_adapters(method)
    twin = copy.deepcopy(network)
    before = network(*batch()).asnumpy()
    set_adapter(twin, "second")
    delete_adapter(twin, "first")
    np.testing.assert_array_equal(network(*batch()).asnumpy(), before)
    set_adapter(network, "second")
    np.testing.assert_array_equal(network(*batch()).asnumpy(), twin(*batch()).asnumpy())
    assert (list_adapters(network), list_adapters(twin)) == (["first", "second"], ["second"])


@EVERY_METHOD
def test_a_new_adapter_starts_as_one_that_is_attached_anew(method):
    network = two_adapters(method)
    add_adapter(network, "third", first_config(method))
    set_adapter(network, "third")
    started = current_values(require_state(network), "third")
    plain = get_peft_model(small_bert(), first_config(method))
    expected = current_values(require_state(plain), "default")
    assert {name: values.shape for name, values in started.items()} == {
        name: values.shape for name, values in expected.items()
    }
    constant = [name for name, values in expected.items() if np.ptp(values) == 0]
    assert all(np.array_equal(started[name], expected[name]) for name in constant)


def _closure(network, **options):
    def run(*inputs):
        return network(*inputs)

    return mindspore.jit(run, **options)


class _Step:
    def __init__(self, network):
        self.network = network

    @mindspore.jit
    def run(self, *inputs):
        return self.network(*inputs)


HOLDERS = {
    "a function under jit": _closure,
    "a method under jit": lambda network: _Step(network).run,
    "the network under jit": mindspore.jit,
    "bytecode": lambda network: _closure(network, capture_mode="bytecode"),
    "a Model": lambda network: mindspore.train.Model(network).predict,
}


@pytest.mark.parametrize(
    "holder", [pytest.param(one, marks=[] if "function" in one else [pytest.mark.slow]) for one in HOLDERS]
)
def test_whatever_holds_the_network_sees_the_switch_without_compiling(holder, mode, sources):
    network = two_adapters("lora")
    run = HOLDERS[holder](network)
    expected = {}
    for name in ("first", "second"):
        set_adapter(network, name)
        expected[name] = network(*batch()).asnumpy()
    run(*batch())
    compiled = len(sources)
    for name in ("first", "second", "first"):
        set_adapter(network, name)
        np.testing.assert_allclose(run(*batch()).asnumpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert len(sources) == compiled


OPTIMIZERS = {
    "Adam": lambda parameters: nn.Adam(parameters, 0.1),
    "amsgrad": lambda parameters: nn.Adam(parameters, 0.1, use_amsgrad=True),
    "AdamWeightDecay": lambda parameters: nn.AdamWeightDecay(parameters, 0.1),
    "AdaMax": lambda parameters: nn.AdaMax(parameters, 0.1),
    "Momentum": lambda parameters: nn.Momentum(parameters, 0.1, 0.9),
    "RMSProp": lambda parameters: nn.RMSProp(parameters, 0.1, centered=True),
    "SGD": lambda parameters: nn.SGD(parameters, 0.1, momentum=0.9),
    "experimental AdamW": lambda parameters: optim.AdamW(parameters, lr=0.1, amsgrad=True),
    "experimental Adam": lambda parameters: optim.Adam(parameters, lr=0.1),
    "experimental SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_starts_anew_at_a_switch(name):
    network = two_adapters("ia3")
    add_adapter(network, "same", first_config("ia3"))
    state = require_state(network)
    gradients = tuple(Tensor(np.full(one.shape, 0.5, np.float32)) for one in network.trainable_params())

    def run(optimizer):
        optimizer(gradients)
        return np.concatenate([one.asnumpy() for one in network.trainable_params()])

    start = copy.deepcopy(state.adapters["same"].values)
    optimizer = OPTIMIZERS[name](network.trainable_params())
    run(optimizer)
    run(optimizer)
    set_adapter(network, "same", optimizer)
    steps = [run(optimizer), run(optimizer)]
    set_adapter(network, "first")
    state.adapters["same"].values = start
    set_adapter(network, "same")
    fresh = OPTIMIZERS[name](network.trainable_params())
    expected = [run(fresh), run(fresh)]
    np.testing.assert_allclose(steps, expected, rtol=1e-5)


def test_an_optimizer_that_cannot_be_reset_is_refused_before_anything_is_switched():
    network = two_adapters("lora")
    foreign = nn.Adam(small_bert().trainable_params())
    unknown = nn.Adagrad(network.trainable_params())
    for optimizer, message in ((foreign, "trains no parameter of this network"), (unknown, "how Adagrad starts")):
        with pytest.raises(InputError, match=message):
            set_adapter(network, "second", optimizer)
    with pytest.raises(TypeError, match="optimizer is a str"):
        set_adapter(network, "second", "Adam")
    assert active_adapter(network) == "first"


REFUSED = {
    "a rank beyond the room": (LoraConfig(r=6), r"room for 6 .*room for 4; attach with max_rank=6"),
    "a rank of one layer": (LoraConfig(rank_pattern={"query": 5}, r=1), "attach with max_rank=5"),
    "another layer": (LoraConfig(r=2, target_modules=["key", "query"]), "attention.self.key.*max_targets"),
    "another method": (AdapterConfig(), "needs adapter, and attached is lora"),
    "another variant": (LoraConfig(r=2, use_dora=True), "use_dora True, and attached is False"),
    "another start of the weight": (LoraConfig(r=2, init_lora_weights="pissa"), "init_lora_weights 'pissa'"),
    "a head": (LoraConfig(r=2, modules_to_save=["classifier"]), "trains classifier.bias.*same modules_to_save"),
    "biases": (LoraConfig(r=2, bias="lora_only"), "trains .*query.bias.*biases"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_with_what_it_needs(case):
    network = two_adapters("lora")
    config, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        add_adapter(network, "third", config)
    assert list_adapters(network) == ["first", "second"]


@pytest.mark.parametrize("method", ["prefixtuning", "tokens", "adapter"])
def test_the_capacity_that_is_needed_is_named(method):
    network = two_adapters(method)
    config = METHODS[method].config
    given = tuple(range(6)) if method == "tokens" else 6
    with pytest.raises(InputError, match=f"attach with {config.capacity}=6"):
        add_adapter(network, "third", config_of(method, **{config.size_field: given}))


def test_a_smaller_bottleneck_needs_an_activation_that_maps_zero_to_zero():
    network = get_peft_model(small_bert(), AdapterConfig(bottleneck_size=3, non_linearity="sigmoid"))
    add_adapter(network, "as large", AdapterConfig(bottleneck_size=3, non_linearity="sigmoid"))
    with pytest.raises(InputError, match="sigmoid does not; give bottleneck_size=3"):
        add_adapter(network, "smaller", AdapterConfig(bottleneck_size=2, non_linearity="sigmoid"))


def test_inputs_and_outputs_of_ia3_cannot_be_exchanged():
    network = get_peft_model(small_bert(), IA3Config(target_modules=["key", "value"], feedforward_modules=["key"]))
    with pytest.raises(InputError, match=r"another kind of ia3 at .*key"):
        add_adapter(network, "b", IA3Config(target_modules=["key"]))


def test_the_room_may_have_more_layers_than_the_first_adapter(mode):
    network = small_bert()
    config = LoraConfig(r=2, target_modules=["query"])
    get_peft_model(network, config, max_targets=["query", "key"], max_rank=3)
    shake(network, 4)
    expected = run_plainly(alone(network, "default", config))
    np.testing.assert_allclose(network(*batch()).asnumpy(), expected, rtol=1e-5, atol=1e-6)
    other = LoraConfig(r=3, target_modules=["key"])
    add_adapter(network, "b", other)
    set_adapter(network, "b")
    shake(network, 5)
    expected = run_plainly(alone(network, "b", other))
    np.testing.assert_allclose(network(*batch()).asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("room", [{"max_rank": 1}, {"max_rank": 0}])
def test_too_little_room_is_refused_and_nothing_is_changed(room):
    network = small_bert()
    names = [parameter.name for parameter in network.get_parameters()]
    with pytest.raises(InputError, match="max_rank"):
        get_peft_model(network, LoraConfig(r=2), **room)
    assert [parameter.name for parameter in network.get_parameters()] == names


def test_a_grouped_convolution_is_padded_group_by_group():
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 1, group=2, weight_init="ones")

        def construct(self, x):
            return self.layer(x)

    network = get_peft_model(Network(), LoraConfig(r=2, target_modules=["layer"]), max_rank=6)
    shake(network, 1)
    plain = get_peft_model(Network(), LoraConfig(r=2, target_modules=["layer"]))
    write_adapter(require_state(plain), current_values(require_state(network), "default"))
    x = Tensor(np.random.default_rng(0).normal(size=(1, 4, 2, 2)).astype(np.float32))
    np.testing.assert_allclose(network(x).asnumpy(), plain(x).asnumpy(), rtol=1e-5)


def test_names_are_checked():
    network = two_adapters("lora")
    with pytest.raises(InputError, match=r"'secnd' \(did you mean second\?\); there are first, second"):
        set_adapter(network, "secnd")
    with pytest.raises(InputError, match="has an adapter 'second'"):
        add_adapter(network, "second", first_config("lora"))
    with pytest.raises(TypeError, match="name is 3"):
        add_adapter(network, 3, first_config("lora"))
    with pytest.raises(InputError, match="first is the active adapter"):
        delete_adapter(network, "first")
    delete_adapter(network, "second")
    assert list_adapters(network) == ["first"]


def test_the_active_adapter_is_merged_and_the_others_wait(mode):
    network = two_adapters("lora")
    attached = network(*batch()).asnumpy()
    merge(network)
    np.testing.assert_allclose(network(*batch()).asnumpy(), attached, rtol=1e-4, atol=1e-5)
    for change in (
        lambda: set_adapter(network, "second"),
        lambda: add_adapter(network, "third", first_config("lora")),
        lambda: disable_adapter(network),
    ):
        with pytest.raises(InputError, match="merged"):
            change()
    unmerge(network)
    np.testing.assert_array_equal(network(*batch()).asnumpy(), attached)
    disable_adapter(network)
    with pytest.raises(InputError, match="disabled"):
        merge(network)
    set_adapter(network, "second")
    assert active_adapter(network) == "second"
    unload(network)
    np.testing.assert_array_equal(run_plainly(network), run_plainly(small_bert()))


def test_a_network_that_was_renamed_by_a_wrapper_still_takes_adapters():
    network = two_adapters("lora")
    expected = network(*batch()).asnumpy()
    nn.SequentialCell(network)
    add_adapter(network, "third", second_config("lora"))
    set_adapter(network, "third")
    set_adapter(network, "first")
    np.testing.assert_array_equal(network(*batch()).asnumpy(), expected)
    assert count_parameters(network).trainable > 0


@pytest.mark.parametrize("method", ["lora", "tokens", "ptuning2"])
def test_a_file_holds_the_adapters_own_part_and_is_loaded_by_name(method, tmp_path):
    network = two_adapters(method)
    expected = {}
    for name in ("first", "second"):
        set_adapter(network, name)
        save_adapter(network, tmp_path / name)
        expected[name] = network(*batch()).asnumpy()
    other = small_bert()
    load_adapter(other, tmp_path / "second")  # what lacks room gets what it has
    np.testing.assert_allclose(other(*batch()).asnumpy(), expected["second"], rtol=1e-5, atol=1e-6)
    served = get_peft_model(small_bert(), first_config(method), **ROOM)
    for name in ("second", "first"):
        report = load_adapter(served, tmp_path / name, adapter_name=name)
        assert report.is_verified and active_adapter(served) == name
    for name in ("first", "second"):
        set_adapter(served, name)
        np.testing.assert_allclose(served(*batch()).asnumpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert list_adapters(served) == ["default", "second", "first"]


def test_a_failed_load_leaves_the_adapters_as_they_were(tmp_path):
    network = two_adapters("lora")
    save_adapter(network, tmp_path / "first")
    small = get_peft_model(small_bert(), LoraConfig(r=1))
    with pytest.raises(InputError, match="attach with max_rank=2"):
        load_adapter(small, tmp_path / "first", adapter_name="first")
    base = small_bert(seed=1)
    get_peft_model(base, first_config("lora"))
    with pytest.raises(InputError, match="another base"):
        load_adapter(base, tmp_path / "first", adapter_name="first")
    for one in (small, base):
        assert (list_adapters(one), active_adapter(one)) == (["default"], "default")
    disable_adapter(network)
    for change in (save_adapter, load_adapter):
        with pytest.raises(InputError, match=r"first is disabled; call mindpet\.enable_adapter"):
            change(network, tmp_path / ("other" if change is save_adapter else "first"))
