"""Combining adapters: the formulas by hand, what the new adapter computes, refusals, and PEFT's numbers."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from mindpet.tuning.adapters import add_adapter, current_values, list_adapters, set_adapter
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.capacity import write_adapter
from mindpet.tuning.combine import combine_adapters, dare, linear, ties
from mindpet.tuning.config import BitFitConfig, IA3Config, LoraConfig
from mindpet.tuning.state import require_state
from mindpet.utils.exceptions import InputError

X = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
NAMES = ["first", "second"]


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        generator = np.random.default_rng(7)
        self.body = nn.Dense(5, 6)
        self.head = nn.Dense(6, 2)
        for parameter in self.get_parameters():
            parameter.set_data(Tensor(generator.normal(size=parameter.shape).astype(np.float32)))

    def construct(self, x):
        return self.head(self.body(x))


def _shake(network, seed):
    state = require_state(network)
    generator = np.random.default_rng(seed)
    values = current_values(state, state.active)
    changed = {name: generator.normal(size=one.shape).astype(np.float32) for name, one in values.items() if one.ndim}
    write_adapter(state, values | changed)


def _adapters(configs):
    """Return a network with an adapter for each configuration, random ones, of which the first is active."""
    network = get_peft_model(_Network(), configs[0], adapter_name=NAMES[0])
    for name, config in zip(NAMES[1:], configs[1:], strict=True):
        add_adapter(network, name, config)
    for seed, name in enumerate(NAMES):
        set_adapter(network, name)
        _shake(network, seed)
    set_adapter(network, NAMES[0])
    return network


def _values(network, name):
    return current_values(require_state(network), name)


LORA = [
    LoraConfig(r=2, lora_alpha=3, target_modules=["body", "head"]),
    LoraConfig(r=2, lora_alpha=4, target_modules=["body"], use_rslora=True),
]


def test_the_formulas():
    first = np.array([4.0, -3.0, 0.5, 0.0], np.float32)
    second = np.array([1.0, 6.0, -2.0, 0.0], np.float32)
    np.testing.assert_array_equal(linear([first, second], [2, -1]), [7, -12, 3, 0])
    # The two largest stay: [4, -3, 0, 0] and [0, 6, -2, 0]; the signs are +, +, -, +.
    np.testing.assert_array_equal(ties([first, second], [2, 3], 0.5), [8, 18, -6, 0])
    # Where both agree, it is the mean of the weighted entries.
    np.testing.assert_array_equal(ties([first, np.abs(first)], [1, 1], 1.0), [4, 3, 0.5, 0])
    masks = [np.array([1, 0, 1, 1]), np.array([0, 1, 0, 1])]
    np.testing.assert_array_equal(dare([first, second], [1, 2], 0.5, masks), [8, 24, 1, 0])


def test_dare_keeps_the_mean():
    generator = np.random.default_rng(0)
    tensor = np.ones((200, 200), np.float32)
    merged = dare([tensor], [2.0], 0.3, [generator.random(tensor.shape) < 0.3])
    assert abs(merged.mean() - 2) < 0.05
    assert {round(float(value), 4) for value in np.unique(merged)} == {0.0, round(2 / 0.3, 4)}


def test_one_adapter_alone_is_scaled_by_its_weight():
    network = _adapters(LORA)
    base = _Network()(Tensor(X)).asnumpy()
    combine_adapters(network, ["second"], [1.0], "same")
    combine_adapters(network, ["second"], [-0.5], "less")
    set_adapter(network, "second")
    whole = network(Tensor(X)).asnumpy() - base
    for name, factor in (("same", 1.0), ("less", -0.5)):
        set_adapter(network, name)
        np.testing.assert_allclose(network(Tensor(X)).asnumpy() - base, factor * whole, rtol=1e-3, atol=1e-4)


def test_dare_follows_from_its_seed_and_leaves_the_others_alone():
    network = _adapters(LORA)
    before = {name: {key: one.copy() for key, one in _values(network, name).items()} for name in NAMES}
    output = network(Tensor(X)).asnumpy()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        combine_adapters(network, NAMES, [0.5, 0.5], name, "dare", density=0.5, seed=seed)
    a, b, c = (_values(network, name) for name in "abc")
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert any(not np.array_equal(a[key], c[key]) for key in a)
    assert list_adapters(network) == [*NAMES, "a", "b", "c"]
    assert all(np.array_equal(before[name][key], one) for name in NAMES for key, one in _values(network, name).items())
    np.testing.assert_array_equal(network(Tensor(X)).asnumpy(), output)


def test_a_layer_that_one_adapter_lacks_gets_the_others_part():
    network = _adapters(LORA)
    combine_adapters(network, NAMES, [1.0, 1.0], "both")
    first, both = _values(network, "first"), _values(network, "both")
    root = np.sqrt(3 / 2)
    np.testing.assert_allclose(both["head.mindpet_delta_lora_a"], root * first["head.mindpet_delta_lora_a"], rtol=1e-6)
    assert require_state(network).adapters["both"].configs[0].target_modules == ("body", "head")


def test_what_the_network_itself_has_learnt_is_combined_as_a_change():
    network = get_peft_model(_Network(), BitFitConfig(), adapter_name="first")
    base = {name: one.copy() for name, one in _values(network, "first").items()}
    _shake(network, 1)
    add_adapter(network, "second", BitFitConfig())
    combine_adapters(network, ["first", "second"], [0.25, 0.5], "new")
    for name, values in _values(network, "new").items():
        expected = base[name] + 0.25 * (_values(network, "first")[name] - base[name])
        np.testing.assert_allclose(values, expected, rtol=1e-5)


REFUSED = {
    "an unknown name": ({"names": ["first", "thrid"]}, InputError, "no adapter has the name 'thrid'"),
    "a name twice": ({"names": ["first", "first"]}, InputError, "each name once"),
    "a weight too few": ({"weights": [1.0]}, InputError, "2 names .* 1 weights"),
    "a weight that is no number": ({"weights": [1.0, float("nan")]}, InputError, "finite"),
    "names as a text": ({"names": "first"}, TypeError, "list of adapters' names"),
    "a taken name": ({"new_name": "second"}, InputError, "has an adapter 'second'"),
    "an unknown method": ({"method": "svd"}, InputError, "'linear', 'ties' or 'dare'"),
    "a density that is not used": ({"density": 0.5}, InputError, "'linear' does not use"),
    "no density": ({"method": "ties"}, InputError, "density is None"),
    "a density of zero": ({"method": "dare", "density": 0.0}, InputError, "above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_combined_is_refused(case):
    network = _adapters(LORA)
    change, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        combine_adapters(network, **{"names": NAMES, "weights": [0.5, 0.5], "new_name": "new"} | change)
    assert list_adapters(network) == NAMES


def test_other_ranks_and_other_methods_are_refused():
    network = _adapters([LORA[0], LoraConfig(r=1, target_modules=["head"])])
    with pytest.raises(InputError, match=r"ranks \[1, 2\] at head"):
        combine_adapters(network, NAMES, [0.5, 0.5], "new")
    for config, message in (
        (IA3Config(target_modules=["body"]), "ia3, which"),
        (LoraConfig(r=1, target_modules=["body"], use_dora=True), "lora with use_dora"),
        (LoraConfig(r=1, target_modules=["body"], init_lora_weights="pissa"), "lora that starts with pissa"),
    ):
        network = _adapters([config, config])
        with pytest.raises(InputError, match=message):
            combine_adapters(network, NAMES, [0.5, 0.5], "new")


@pytest.mark.slow
@pytest.mark.parametrize("weights", [[0.7, 0.4], [1.5, -0.5]])
@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
def test_the_numbers_are_those_of_peft(method, weights, monkeypatch):
    import peft
    import torch

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(5, 6)
            self.head = torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.body(x))

    network = _adapters(LORA)
    twin = Twin()
    twin.load_state_dict({one.name: torch.tensor(one.asnumpy()) for one in _Network().get_parameters()})
    fields = [{"r": 2, "lora_alpha": 3, "target_modules": ["body", "head"]}]
    fields += [{"r": 2, "lora_alpha": 4, "target_modules": ["body"], "use_rslora": True}]
    model = peft.get_peft_model(twin, peft.LoraConfig(**fields[0]), adapter_name="first")
    model.add_adapter("second", peft.LoraConfig(**fields[1]))
    for name in NAMES:
        for key, value in _values(network, name).items():
            layer, _, letter = key.rpartition(".mindpet_delta_lora_")
            if layer:
                factor = getattr(getattr(model.base_model.model, layer), f"lora_{letter.upper()}")[name]
                factor.weight.data = torch.tensor(value)
    masks = []
    generator = np.random.default_rng(3)

    def bernoulli(probability):
        masks.append(generator.random(tuple(probability.shape)) < probability.numpy())
        return torch.tensor(masks[-1].astype(np.float32))

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    density = None if method == "linear" else 0.6
    peft_method = "dare_linear" if method == "dare" else method
    model.add_weighted_adapter(NAMES, weights, "new", combination_type=peft_method, density=density)
    combine_adapters(network, NAMES, weights, "new", method, density, seed=3)  # the same generator, the same masks
    for key, value in _values(network, "new").items():
        layer, _, letter = key.rpartition(".mindpet_delta_lora_")
        if layer:
            factor = getattr(getattr(model.base_model.model, layer), f"lora_{letter.upper()}")["new"]
            np.testing.assert_allclose(value, factor.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
    model.set_adapter("new")
    set_adapter(network, "new")
    with torch.no_grad():
        expected = model(torch.tensor(X)).numpy()
    np.testing.assert_allclose(network(Tensor(X)).asnumpy(), expected, rtol=1e-4, atol=1e-5)
