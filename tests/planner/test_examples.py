"""The strategies that the specification prints, as MindSpore's planner takes them over 8 devices."""

import pytest

from mindpet.delta import AdapterDense, AdapterLayer, LoRADense, LowRankAdapterDense, LowRankAdapterLayer
from tests.delta.test_shard import EXAMPLES
from tests.planner.cases import EXAMPLE_LAYERS
from tests.planner.graph import Plan
from tests.planner.planner import Refusal

pytestmark = pytest.mark.slow


def _inside(path, shapes):
    return {f"{path}.{name}": shape for name, shape in shapes.items()}


_ADAPTER = {
    **_inside("mindpet_delta_adapter_block.mindpet_delta_adapter_down_sampler", {"weight": (64, 512), "bias": (64,)}),
    **_inside("mindpet_delta_adapter_block.mindpet_delta_adapter_up_sampler", {"weight": (512, 64), "bias": (512,)}),
}
_LEFT, _RIGHT = "mindpet_delta_low_rank_adapter_weight_left", "mindpet_delta_low_rank_adapter_weight_right"
_LOW_RANK = {
    **_inside("mindpet_delta_low_rank_adapter_down_sampler", {_LEFT: (512, 1), _RIGHT: (1, 64), "bias": (64,)}),
    **_inside("mindpet_delta_low_rank_adapter_up_sampler", {_LEFT: (64, 1), _RIGHT: (1, 512), "bias": (512,)}),
}

# What one device keeps of each parameter of the example. The base of the adapters is split by its input channels, and
# their own parameters are whole.
SLICES = {
    LoRADense: {
        "weight": (128, 784),
        "bias": (128,),
        "mindpet_delta_lora_a": (8, 784),
        "mindpet_delta_lora_b": (128, 8),
    },
    AdapterDense: {"weight": (512, 196), "bias": (512,), **_inside("mindpet_delta_adapter", _ADAPTER)},
    AdapterLayer: _ADAPTER,
    LowRankAdapterDense: {
        "weight": (512, 196),
        "bias": (512,),
        **_inside("mindpet_delta_low_rank_adapter", _LOW_RANK),
    },
    LowRankAdapterLayer: _LOW_RANK,
}

# Where the input channels are split, the parts of the product are summed over the four devices of a row.
COLLECTIVES = {cell: [("AllReduce", 4)] if cell in (AdapterDense, LowRankAdapterDense) else [] for cell in EXAMPLES}


def _expected(cell):
    strategies = {path: strategy for strategy, path in EXAMPLES[cell].values()}
    return Plan(SLICES[cell], strategies, batch=((1, 1),), collectives=COLLECTIVES[cell])


@pytest.mark.parametrize("cell", EXAMPLES)
def test_an_example_is_taken_as_it_reads(answers, cell):
    assert answers[f"{cell.__name__} example"] == _expected(cell)


def test_automatic_parallel_mode_takes_an_example_too(answers):
    assert answers["LoRADense example, auto_parallel"] == _expected(LoRADense)


def test_the_printed_strategy_of_the_activation_has_one_entry_too_many(answers):
    refusal = answers["LoRADense example, two entries"]
    assert isinstance(refusal, Refusal)
    assert "The strategy is ((2, 4), (2, 4)), strategy size: 2 is not equal to inputs size: 1" in refusal.text


def test_more_devices_than_there_are_is_refused(answers):
    refusal = answers["LoRADense example, 16 devices"]
    assert isinstance(refusal, Refusal)
    assert "it requires 16 devices, but the device number of this stage is 8" in refusal.text


def test_another_strategy_gives_another_plan(answers):
    plan, expected = answers["LoRADense example, lora_b in two"], _expected(LoRADense)
    assert plan != expected
    assert plan.strategies == expected.strategies | {"lora_b_matmul": ((2, 1), (2, 1))}
    assert plan.slices == expected.slices | {"mindpet_delta_lora_b": (256, 8)}


@pytest.mark.parametrize("cell", EXAMPLES)
def test_without_strategies_the_batch_is_split_and_no_parameter(answers, cell):
    plan = answers[f"{cell.__name__} unsharded"]
    shapes = {name: tuple(parameter.shape) for name, parameter in EXAMPLE_LAYERS[cell]().parameters_dict().items()}
    assert plan.slices == shapes
    assert plan.batch == ((8, 1),)
    assert plan.collectives == []
    assert set(plan.strategies) == {path for _, path in EXAMPLES[cell].values()}
    for path, (of_input, *of_others) in plan.strategies.items():
        by_row = (1, 1) if path.endswith("matmul_weight") else (8, 1)  # a product of two parameters has no rows
        assert of_input == by_row
        assert all(other in ((1, 1), (1,), (), by_row) for other in of_others)
