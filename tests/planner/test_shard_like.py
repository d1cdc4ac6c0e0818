"""The strategies that `shard_like` derives from a dense layer's, as MindSpore's planner takes them over 8 devices."""

import pytest

from mindpet.delta import AdapterDense, LoRADense, LowRankAdapterDense
from tests.planner.graph import Plan

pytestmark = pytest.mark.slow


def _plan(strategies, slices, collectives):
    return Plan(slices, strategies, batch=((1, 1),), collectives=collectives)


def _inside(path, values):
    return {f"{path}.{name}": value for name, value in values.items()}


_ADAPTER = "mindpet_delta_adapter.mindpet_delta_adapter_block.mindpet_delta_adapter_"
_LOW = "mindpet_delta_low_rank_adapter.mindpet_delta_low_rank_adapter_"
_LEFT, _RIGHT = "mindpet_delta_low_rank_adapter_weight_left", "mindpet_delta_low_rank_adapter_weight_right"
_WHOLE_PRODUCT = ((1, 1), (1, 1))

# The base layer, a Linear of 256 to 512 channels with ReLU, over 2 parts of the batch and 4 of the channels.
_COLUMNS = {"matmul": ((2, 1), (4, 1)), "bias_add": ((2, 4), (4,)), "activation.relu": ((2, 4),)}
_ROWS = {"matmul": ((2, 4), (1, 4)), "bias_add": ((2, 1), (1,)), "activation.relu": ((2, 1),)}
_COLUMN_SLICES = {"weight": (128, 256), "bias": (128,)}
_ROW_SLICES = {"weight": (512, 64), "bias": (512,)}

# By layer and split of the base. A split sum is completed by an AllReduce over the four devices of a row; there is no
# other exchange.
EXPECTED = {
    (LoRADense, "columns"): _plan(
        {
            **_COLUMNS,
            "lora_dropout.dropout": ((2, 1),),
            "lora_a_matmul": ((2, 1), (1, 1)),
            "lora_b_matmul": ((2, 1), (4, 1)),
            "mul": ((2, 4), ()),
            "add": ((2, 4), (2, 4)),
        },
        {**_COLUMN_SLICES, "mindpet_delta_lora_a": (8, 256), "mindpet_delta_lora_b": (128, 8)},
        [],
    ),
    (LoRADense, "rows"): _plan(
        {
            **_ROWS,
            "lora_dropout.dropout": ((2, 4),),
            "lora_a_matmul": ((2, 4), (1, 4)),
            "lora_b_matmul": ((2, 1), (1, 1)),
            "mul": ((2, 1), ()),
            "add": ((2, 1), (2, 1)),
        },
        {**_ROW_SLICES, "mindpet_delta_lora_a": (8, 64), "mindpet_delta_lora_b": (512, 8)},
        [("AllReduce", 4), ("AllReduce", 4)],
    ),
    (AdapterDense, "columns"): _plan(
        {
            **_COLUMNS,
            f"{_ADAPTER}down_sampler.matmul": ((2, 4), (1, 4)),
            f"{_ADAPTER}down_sampler.bias_add": ((2, 1), (1,)),
            f"{_ADAPTER}non_linear.gelu": ((2, 1),),
            f"{_ADAPTER}up_sampler.matmul": ((2, 1), (4, 1)),
            f"{_ADAPTER}up_sampler.bias_add": ((2, 4), (4,)),
            "mindpet_delta_adapter.residual_add": ((2, 4), (2, 4)),
        },
        {
            **_COLUMN_SLICES,
            **_inside(f"{_ADAPTER}down_sampler", {"weight": (64, 128), "bias": (64,)}),
            **_inside(f"{_ADAPTER}up_sampler", {"weight": (128, 64), "bias": (128,)}),
        },
        [("AllReduce", 4)],
    ),
    (AdapterDense, "rows"): _plan(
        {
            **_ROWS,
            f"{_ADAPTER}down_sampler.matmul": ((2, 1), (1, 1)),
            f"{_ADAPTER}down_sampler.bias_add": ((2, 1), (1,)),
            f"{_ADAPTER}non_linear.gelu": ((2, 1),),
            f"{_ADAPTER}up_sampler.matmul": ((2, 1), (1, 1)),
            f"{_ADAPTER}up_sampler.bias_add": ((2, 1), (1,)),
            "mindpet_delta_adapter.residual_add": ((2, 1), (2, 1)),
        },
        {
            **_ROW_SLICES,
            **_inside(f"{_ADAPTER}down_sampler", {"weight": (64, 512), "bias": (64,)}),
            **_inside(f"{_ADAPTER}up_sampler", {"weight": (512, 64), "bias": (512,)}),
        },
        [("AllReduce", 4)],
    ),
    (LowRankAdapterDense, "columns"): _plan(
        {
            **_COLUMNS,
            f"{_LOW}down_sampler.matmul_weight": _WHOLE_PRODUCT,
            f"{_LOW}down_sampler.matmul_input": ((2, 4), (4, 1)),
            f"{_LOW}down_sampler.bias_add": ((2, 1), (1,)),
            f"{_LOW}non_linear.gelu": ((2, 1),),
            f"{_LOW}up_sampler.matmul_weight": _WHOLE_PRODUCT,
            f"{_LOW}up_sampler.matmul_input": ((2, 1), (1, 4)),
            f"{_LOW}up_sampler.bias_add": ((2, 4), (4,)),
            "mindpet_delta_low_rank_adapter.residual_add": ((2, 4), (2, 4)),
        },
        {
            **_COLUMN_SLICES,
            **_inside(f"{_LOW}down_sampler", {_LEFT: (512, 4), _RIGHT: (4, 64), "bias": (64,)}),
            **_inside(f"{_LOW}up_sampler", {_LEFT: (64, 4), _RIGHT: (4, 512), "bias": (128,)}),
        },
        [("AllReduce", 4)],
    ),
    (LowRankAdapterDense, "rows"): _plan(
        {
            **_ROWS,
            f"{_LOW}down_sampler.matmul_weight": _WHOLE_PRODUCT,
            f"{_LOW}down_sampler.matmul_input": ((2, 1), (1, 1)),
            f"{_LOW}down_sampler.bias_add": ((2, 1), (1,)),
            f"{_LOW}non_linear.gelu": ((2, 1),),
            f"{_LOW}up_sampler.matmul_weight": _WHOLE_PRODUCT,
            f"{_LOW}up_sampler.matmul_input": ((2, 1), (1, 1)),
            f"{_LOW}up_sampler.bias_add": ((2, 1), (1,)),
            "mindpet_delta_low_rank_adapter.residual_add": ((2, 1), (2, 1)),
        },
        {
            **_ROW_SLICES,
            **_inside(f"{_LOW}down_sampler", {_LEFT: (512, 4), _RIGHT: (4, 64), "bias": (64,)}),
            **_inside(f"{_LOW}up_sampler", {_LEFT: (64, 4), _RIGHT: (4, 512), "bias": (512,)}),
        },
        [("AllReduce", 4)],
    ),
}


def _without(values, *names):
    return {name: value for name, value in values.items() if name not in names}


@pytest.mark.parametrize(("cell", "split"), EXPECTED)
def test_strategies_follow_from_the_base(answers, cell, split):
    assert answers[f"{cell.__name__} like {split}, full"] == EXPECTED[cell, split]


@pytest.mark.parametrize(("cell", "split"), EXPECTED)
def test_strategies_follow_from_a_base_without_bias_and_activation(answers, cell, split):
    full = EXPECTED[cell, split]
    strategies = _without(full.strategies, "bias_add", "activation.relu")
    assert answers[f"{cell.__name__} like {split}, bare"] == _plan(
        strategies, _without(full.slices, "bias"), full.collectives
    )


@pytest.mark.parametrize("split", ["columns", "rows"])
def test_strategies_follow_from_a_weight_that_is_not_transposed(answers, split):
    expected = EXPECTED[LoRADense, split]
    of_rows, of_weight = expected.strategies["matmul"]
    assert answers[f"LoRADense like {split}, transposed"] == _plan(
        expected.strategies | {"matmul": (of_rows, of_weight[::-1])},
        expected.slices | {"weight": expected.slices["weight"][::-1]},
        expected.collectives,
    )


def test_rows_and_columns_may_both_be_split(answers):
    plan = answers["LoRADense like both"]
    assert plan.strategies == {
        "matmul": ((2, 2), (2, 2)),
        "bias_add": ((2, 2), (2,)),
        "lora_dropout.dropout": ((2, 2),),
        "lora_a_matmul": ((2, 2), (1, 2)),
        "lora_b_matmul": ((2, 1), (2, 1)),
        "mul": ((2, 2), ()),
        "add": ((2, 2), (2, 2)),
        "activation.relu": ((2, 2),),
    }
    assert plan.slices == {
        "weight": (256, 128),
        "bias": (256,),
        "mindpet_delta_lora_a": (8, 128),
        "mindpet_delta_lora_b": (256, 8),
    }


def test_an_activation_over_the_channels_is_given_whole_rows(answers):
    expected = EXPECTED[LoRADense, "columns"]
    strategies = _without(expected.strategies, "activation.relu") | {"activation.softmax": ((2, 1),)}
    assert answers["LoRADense like columns, softmax"] == _plan(strategies, expected.slices, [("AllGather", 4)])


def test_an_input_of_three_axes_is_split_as_its_rows_are(answers):
    plan, expected = answers["LoRADense like columns, three axes"], EXPECTED[LoRADense, "columns"]
    assert plan.strategies == expected.strategies
    assert plan.slices == expected.slices
    assert plan.batch == ((1, 1, 1),)


@pytest.mark.parametrize("cell", [LoRADense, AdapterDense, LowRankAdapterDense])
def test_a_training_step_keeps_the_moments_of_what_a_device_keeps(answers, cell):
    plan, expected = answers[f"{cell.__name__} like columns, trained"], EXPECTED[cell, "columns"]
    trained = {name: shape for name, shape in expected.slices.items() if "mindpet_delta" in name}
    assert plan.slices == {
        **_inside("layer", expected.slices),
        **_inside("moments.layer", trained),
        "learning_rate": (),
        "momentum": (),
    }
    assert (
        expected.strategies.items()
        <= {path.removeprefix("network.layer."): strategy for path, strategy in plan.strategies.items()}.items()
    )
