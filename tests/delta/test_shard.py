"""`shard` and `shard_like`: the documented keywords reach their primitives, and nothing else changes."""

import inspect

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindpet.delta import (
    AdapterDense,
    AdapterLayer,
    DoRADense,
    IA3Dense,
    LoRADense,
    LowRankAdapterDense,
    LowRankAdapterLayer,
    PiSSADense,
    PrefixEncoder,
    VeRADense,
)
from mindpet.delta._activations import ACTIVATIONS
from tests.delta.layers import DENSE_LAYERS, INPUTS, LAYERS, OUTPUTS, random_input, randomise, strategies_of

_BLOCK = "mindpet_delta_adapter_block."
_LOW = "mindpet_delta_low_rank_adapter_"

# Each documented example, with the path of the primitive where each strategy must arrive.
_ADAPTER = {
    "strategy_matmul_down_sampler": (((2, 1), (1, 1)), f"{_BLOCK}mindpet_delta_adapter_down_sampler.matmul"),
    "strategy_bias_down_sampler": (((2, 1), (1,)), f"{_BLOCK}mindpet_delta_adapter_down_sampler.bias_add"),
    "strategy_non_linearity": (((2, 1),), f"{_BLOCK}mindpet_delta_adapter_non_linear.gelu"),
    "strategy_matmul_up_sampler": (((2, 1), (1, 1)), f"{_BLOCK}mindpet_delta_adapter_up_sampler.matmul"),
    "strategy_bias_up_sampler": (((2, 1), (1,)), f"{_BLOCK}mindpet_delta_adapter_up_sampler.bias_add"),
    "strategy_residual_add": (((2, 1), (2, 1)), "residual_add"),
}
_LOW_RANK = {
    "strategy_matmul_down_sampler_weight": (((1, 1), (1, 1)), f"{_LOW}down_sampler.matmul_weight"),
    "strategy_matmul_down_sampler_input": (((2, 1), (1, 1)), f"{_LOW}down_sampler.matmul_input"),
    "strategy_bias_down_sampler": (((2, 1), (1,)), f"{_LOW}down_sampler.bias_add"),
    "strategy_non_linearity": (((2, 1),), f"{_LOW}non_linear.gelu"),
    "strategy_matmul_up_sampler_weight": (((1, 1), (1, 1)), f"{_LOW}up_sampler.matmul_weight"),
    "strategy_matmul_up_sampler_input": (((2, 1), (1, 1)), f"{_LOW}up_sampler.matmul_input"),
    "strategy_bias_up_sampler": (((2, 1), (1,)), f"{_LOW}up_sampler.bias_add"),
    "strategy_residual_add": (((2, 1), (2, 1)), "residual_add"),
}
_ORIGIN = {
    "strategy_matmul_org": (((2, 4), (1, 4)), "matmul"),
    "strategy_bias_org": (((2, 1), (1,)), "bias_add"),
    "strategy_activation_org": (((2, 1),), "activation.relu"),
}


def _inside(path, examples):
    return {keyword: (strategy, f"{path}.{target}") for keyword, (strategy, target) in examples.items()}


_LORA = {
    "strategy_org_dense_matmul": (((2, 1), (4, 1)), "matmul"),
    "strategy_org_bias_add": (((2, 4), (4,)), "bias_add"),
    "strategy_lora_dropout": (((2, 1),), "lora_dropout.dropout"),
    "strategy_lora_a_matmul": (((2, 1), (1, 1)), "lora_a_matmul"),
    "strategy_lora_b_matmul": (((2, 1), (4, 1)), "lora_b_matmul"),
    "strategy_lora_mul": (((2, 4), ()), "mul"),
    "strategy_lora_add": (((2, 4), (2, 4)), "add"),
}
_ACTIVATION = {"strategy_activation": (((2, 4),), "activation.relu")}
EXAMPLES = {
    LoRADense: _LORA | _ACTIVATION,
    AdapterLayer: _ADAPTER,
    AdapterDense: _ORIGIN | _inside("mindpet_delta_adapter", _ADAPTER),
    LowRankAdapterLayer: _LOW_RANK,
    LowRankAdapterDense: _ORIGIN | _inside("mindpet_delta_low_rank_adapter", _LOW_RANK),
}
# The same for the variants of LoRA, which the specification does not have.
LAYER_EXAMPLES = EXAMPLES | {
    PiSSADense: {
        "strategy_org_dense_matmul": (((2, 1), (4, 1)), "matmul"),
        "strategy_org_bias_add": (((2, 4), (4,)), "bias_add"),
        "strategy_lora_dropout": (((2, 1),), "lora_dropout.dropout"),
        "strategy_sub_a": (((1, 1), (1, 1)), "sub_a"),
        "strategy_stack_a": (((1, 1), (1, 1)), "stack_a"),
        "strategy_lora_a_matmul": (((2, 1), (1, 1)), "lora_a_matmul"),
        "strategy_sub_b": (((4, 1), (4, 1)), "sub_b"),
        "strategy_stack_b": (((4, 1), (4, 1)), "stack_b"),
        "strategy_lora_b_matmul": (((2, 1), (4, 1)), "lora_b_matmul"),
        "strategy_lora_mul": (((2, 4), ()), "mul"),
        "strategy_lora_add": (((2, 4), (2, 4)), "add"),
    }
    | _ACTIVATION,
    DoRADense: _LORA
    | {
        "strategy_lora_mul": (((2, 4), (4,)), "mul"),
        "strategy_magnitude_mul": (((2, 4), (4,)), "magnitude_mul"),
        "strategy_magnitude_add": (((2, 4), (2, 4)), "magnitude_add"),
        "strategy_norm_transpose": (((1, 4),), "norm_transpose"),
        "strategy_norm_scale": (((4, 1), ()), "norm_scale"),
        "strategy_norm_matmul": (((4, 1), (1, 1)), "norm_matmul"),
        "strategy_norm_add": (((4, 1), (4, 1)), "norm_add"),
        "strategy_norm_mul": (((4, 1), (4, 1)), "norm_mul"),
        "strategy_norm_sum": (((4, 1),), "norm_sum"),
    }
    | _ACTIVATION,
    VeRADense: {
        "strategy_org_dense_matmul": (((2, 1), (4, 1)), "matmul"),
        "strategy_org_bias_add": (((2, 4), (4,)), "bias_add"),
        "strategy_vera_dropout": (((2, 1),), "vera_dropout.dropout"),
        "strategy_vera_a_slice": (((1, 1),), "vera_a_slice"),
        "strategy_vera_a_matmul": (((2, 1), (1, 1)), "vera_a_matmul"),
        "strategy_lambda_d_mul": (((2, 1), (1,)), "lambda_d_mul"),
        "strategy_vera_b_slice": (((1, 1),), "vera_b_slice"),
        "strategy_vera_b_matmul": (((2, 1), (4, 1)), "vera_b_matmul"),
        "strategy_lambda_b_mul": (((2, 4), (4,)), "lambda_b_mul"),
        "strategy_vera_add": (((2, 4), (2, 4)), "add"),
    }
    | _ACTIVATION,
}

# Dense layers without an activation beside the base layer's.
ONE_ACTIVATION = (LoRADense, DoRADense, PiSSADense, VeRADense, IA3Dense)


def _make(cell):
    layer = next(layer for layer in LAYERS.values() if layer.cell is cell)
    return layer.make(activation="relu") if layer.has_base else layer.make()


# What has parameters alone as its inputs has no batch, so that it starts with a strategy of its own.
_WHOLE = {f"{_LOW}{name}_sampler.matmul_weight": ((1, 1), (1, 1)) for name in ("down", "up")}
DEFAULTS = {cell: {} for cell in LAYER_EXAMPLES} | {
    DoRADense: {
        "norm_transpose": ((1, 1),),
        "norm_scale": ((1, 1), ()),
        "norm_matmul": ((1, 1), (1, 1)),
        "norm_add": ((1, 1), (1, 1)),
        "norm_mul": ((1, 1), (1, 1)),
        "norm_sum": ((1, 1),),
    },
    PiSSADense: dict.fromkeys(("sub_a", "sub_b", "stack_a", "stack_b"), ((1, 1), (1, 1))),
    VeRADense: {"vera_a_slice": ((1, 1),), "vera_b_slice": ((1, 1),)},
    LowRankAdapterLayer: _WHOLE,
    LowRankAdapterDense: {f"mindpet_delta_low_rank_adapter.{path}": whole for path, whole in _WHOLE.items()},
}


@pytest.fixture
def semi_auto_parallel():
    mindspore.set_auto_parallel_context(parallel_mode="semi_auto_parallel")
    yield
    mindspore.reset_auto_parallel_context()


@pytest.mark.parametrize("cell", LAYER_EXAMPLES)
def test_shard_takes_the_documented_keywords_in_their_order(cell):
    parameters = inspect.signature(cell.shard).parameters
    assert list(parameters) == ["self", *LAYER_EXAMPLES[cell]]
    assert all(parameters[keyword].default is None for keyword in LAYER_EXAMPLES[cell])
    assert all(f"{keyword} (tuple)" in cell.shard.__doc__ for keyword in LAYER_EXAMPLES[cell])


@pytest.mark.parametrize("cell", LAYER_EXAMPLES)
def test_each_strategy_reaches_its_primitive_alone(cell):
    for keyword, (strategy, path) in LAYER_EXAMPLES[cell].items():
        layer = _make(cell)
        assert layer.shard(**{keyword: strategy}) is layer
        assert strategies_of(layer) == DEFAULTS[cell] | {path: strategy}


@pytest.mark.parametrize("cell", LAYER_EXAMPLES)
def test_strategies_may_be_given_by_position_and_change_no_result(mode, cell):
    layer, plain = randomise(_make(cell)), randomise(_make(cell))
    x = Tensor(random_input((4, INPUTS)))
    layer.shard(*[strategy for strategy, _ in LAYER_EXAMPLES[cell].values()])
    assert strategies_of(layer) == {path: strategy for strategy, path in LAYER_EXAMPLES[cell].values()}
    assert np.array_equal(layer(x).asnumpy(), plain(x).asnumpy())


@pytest.mark.parametrize("cell", LAYER_EXAMPLES)
def test_none_is_skipped(cell):
    layer = _make(cell)
    layer.shard()
    layer.shard(**dict.fromkeys(LAYER_EXAMPLES[cell]))
    assert strategies_of(layer) == DEFAULTS[cell]


@pytest.mark.parametrize("cell", [cell for cell in LAYER_EXAMPLES if cell not in ONE_ACTIVATION])
def test_the_misprinted_keyword_is_refused_by_the_name_of_the_right_one(cell):
    layer = _make(cell)
    with pytest.raises(TypeError, match="strategy_residual_add"):
        layer.shard(strategy_non_linearity=((2, 1),), strategy_residential_add=((2, 1), (2, 1)))
    assert strategies_of(layer) == DEFAULTS[cell]


def test_too_many_strategies_are_refused():
    with pytest.raises(TypeError):
        AdapterLayer(INPUTS, 3).shard(*[((2, 1),)] * 7)
    with pytest.raises(TypeError, match="it takes strategy_matmul_down_sampler"):
        AdapterLayer(INPUTS, 3).shard(x=1)


@pytest.mark.parametrize(
    "strategy",
    [
        [(2, 1), (1, 1)],
        "((2, 1),)",
        2,
        (),
        (2, 1),
        ([2, 1], [1, 1]),
        True,
        {},
        ((2, "a"),),
        ((2, 0),),
        ((True, 2),),
        ((-1, 2),),
        ((1.0,),),
    ],
)
def test_what_is_no_tuple_of_tuples_is_refused_before_anything_is_set(strategy):
    for cell, examples in LAYER_EXAMPLES.items():
        layer = _make(cell)
        first, *_, last = examples
        with pytest.raises(TypeError, match=last):
            layer.shard(**{first: examples[first][0], last: strategy})
        assert strategies_of(layer) == DEFAULTS[cell]


def test_a_strategy_for_a_primitive_that_is_not_there_is_ignored():
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3, has_bias=False)
    layer.shard(strategy_org_bias_add=((2, 4), (4,)), strategy_activation=((2, 4),), strategy_lora_add=((2, 4), (2, 4)))
    assert strategies_of(layer) == {"add": ((2, 4), (2, 4))}


def _strategy_argument(layer):
    """Return the class's keywords for the activation of the base and for that of the bottleneck."""
    if layer.cell in ONE_ACTIVATION:
        return ("strategy_activation",)
    return ("strategy_activation_org", "strategy_non_linearity") if layer.has_base else ("strategy_non_linearity",)


def _with_activation(layer, name):
    if layer.cell in ONE_ACTIVATION:
        return layer.make(activation=name)
    return layer.make(activation=name, non_linearity=name) if layer.has_base else layer.make(non_linearity=name)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_log_softmax_is_refused_in_parallel_modes_only(semi_auto_parallel, layer):
    for keyword in _strategy_argument(layer):
        cell = _with_activation(layer, "logsoftmax")
        with pytest.raises(ValueError, match=f"{keyword}.*LogSoftmax"):
            cell.shard(**{keyword: ((2, 1),)})
        cell.shard()
        mindspore.set_auto_parallel_context(parallel_mode="auto_parallel")
        with pytest.raises(ValueError, match="LogSoftmax"):
            cell.shard(**{keyword: ((2, 1),)})
        mindspore.set_auto_parallel_context(parallel_mode="stand_alone")
        cell.shard(**{keyword: ((2, 1),)})
        mindspore.set_auto_parallel_context(parallel_mode="semi_auto_parallel")


@pytest.mark.parametrize("activation", [nn.LogSoftmax(), ops.LogSoftmax()], ids=["cell", "primitive"])
def test_log_softmax_handed_in_is_refused_as_its_name_is(semi_auto_parallel, activation):
    for layer in DENSE_LAYERS.values():
        with pytest.raises(ValueError, match="LogSoftmax"):
            layer.make(activation=activation).shard(**{_strategy_argument(layer)[0]: ((2, 1),)})


def test_a_cell_without_a_primitive_is_refused_in_parallel_modes_with_advice(semi_auto_parallel):
    with pytest.raises(ValueError, match="'gelu'"):
        LoRADense(INPUTS, OUTPUTS, 2, 3, activation=nn.GELU(False)).shard(strategy_activation=((2, 1),))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if not name.lower().startswith("logsoftmax")])
def test_every_other_activation_can_be_sharded(semi_auto_parallel, name):
    for layer in LAYERS.values():
        cell = _with_activation(layer, name)
        for keyword in _strategy_argument(layer):
            before = strategies_of(cell).items()
            cell.shard(**{keyword: ((2, 1),)})
            assert {strategy[0] for _, strategy in strategies_of(cell).items() - before} == {(2, 1)}


def test_an_activation_of_several_primitives_has_a_strategy_for_each_input():
    def strategies(activation):
        layer = LoRADense(INPUTS, OUTPUTS, 2, 3, activation=activation)
        return strategies_of(layer.shard(strategy_activation=((2, 4),)))

    one, scalar, two = ((2, 4),), ((2, 4), ()), ((2, 4), (2, 4))
    assert strategies("leakyrelu") == {"activation.mul": scalar, "activation.select_op": two}
    assert strategies("silu") == {"activation.sigmoid": one, "activation.mul": two}
    assert strategies("prelu") == {"activation.prelu": ((2, 4), (1,))}
    assert strategies("logsigmoid") == {
        "activation.mul": scalar,
        "activation.exp": one,
        "activation.add": scalar,
        "activation.rec": one,
        "activation.log": one,
    }
    assert strategies(ops.ReLU()) == {"activation": one}
    assert strategies(nn.Tanh()) == {"activation.tanh": one}


def test_a_surplus_entry_for_an_activation_is_left_to_the_planner():
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3, activation="silu").shard(strategy_activation=((2, 4), (2, 4)))
    assert strategies_of(layer)["activation.sigmoid"] == ((2, 4), (2, 4))


def test_a_second_entry_is_what_a_primitive_of_two_inputs_has_anyway():
    """1.0.4 took two entries for LeakyReLU."""
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3, activation="leakyrelu").shard(strategy_activation=((2, 4), (2, 4)))
    assert strategies_of(layer) == {"activation.mul": ((2, 4), ()), "activation.select_op": ((2, 4), (2, 4))}


_LORA_LIKE = {
    # (matmul of the base): what follows for the primitives of LoRADense
    ((2, 1), (4, 1)): {"lora_dropout.dropout": ((2, 1),), "lora_a_matmul": ((2, 1), (1, 1)), "add": ((2, 4), (2, 4))},
    ((2, 4), (1, 4)): {"lora_dropout.dropout": ((2, 4),), "lora_a_matmul": ((2, 4), (1, 4)), "add": ((2, 1), (2, 1))},
}


@pytest.mark.parametrize("transpose_b", [True, False])
@pytest.mark.parametrize("of_base", _LORA_LIKE, ids=["columns", "rows"])
def test_lora_strategies_follow_from_the_base(of_base, transpose_b):
    rows, weight = of_base
    base = nn.Dense(INPUTS, OUTPUTS, activation="relu")
    base.matmul = ops.MatMul(transpose_b=transpose_b).shard((rows, weight if transpose_b else weight[::-1]))
    layer = LoRADense.from_dense(base, 2, 3)
    assert layer.shard_like(base) is layer
    (n, _), (o, _) = of_base
    assert strategies_of(layer) == _LORA_LIKE[of_base] | {
        "matmul": (rows, weight if transpose_b else weight[::-1]),
        "bias_add": ((n, o), (o,)),
        "lora_b_matmul": ((n, 1), (o, 1)),
        "mul": ((n, o), ()),
        "activation.relu": ((n, o),),
    }


def test_adapter_strategies_follow_from_the_base():
    base = nn.Dense(INPUTS, OUTPUTS)
    base.matmul.shard(((2, 1), (4, 1)))
    down, up = (f"{_BLOCK}mindpet_delta_adapter_{name}_sampler" for name in ("down", "up"))
    assert strategies_of(AdapterLayer(OUTPUTS, 3).shard_like(base)) == {
        f"{down}.matmul": ((2, 4), (1, 4)),
        f"{down}.bias_add": ((2, 1), (1,)),
        f"{_BLOCK}mindpet_delta_adapter_non_linear.gelu": ((2, 1),),
        f"{up}.matmul": ((2, 1), (4, 1)),
        f"{up}.bias_add": ((2, 4), (4,)),
        "residual_add": ((2, 4), (2, 4)),
    }
    assert strategies_of(LowRankAdapterLayer(OUTPUTS, 2).shard_like(base)) == {
        f"{_LOW}down_sampler.matmul_weight": ((1, 1), (1, 1)),
        f"{_LOW}down_sampler.matmul_input": ((2, 4), (4, 1)),
        f"{_LOW}down_sampler.bias_add": ((2, 1), (1,)),
        f"{_LOW}non_linear.gelu": ((2, 1),),
        f"{_LOW}up_sampler.matmul_weight": ((1, 1), (1, 1)),
        f"{_LOW}up_sampler.matmul_input": ((2, 1), (1, 4)),
        f"{_LOW}up_sampler.bias_add": ((2, 4), (4,)),
        "residual_add": ((2, 4), (2, 4)),
    }


@pytest.mark.parametrize("layer", [layer for layer in DENSE_LAYERS.values() if layer.cell in LAYER_EXAMPLES])
def test_a_dense_layer_derives_strategies_for_all_that_shard_reaches(layer):
    base = nn.Dense(INPUTS, OUTPUTS, activation="relu")
    base.matmul.shard(((2, 1), (4, 1)))
    derived = layer.from_dense(base).shard_like(base)
    assert set(strategies_of(derived)) == {path for _, path in LAYER_EXAMPLES[layer.cell].values()}


def test_an_activation_over_the_channels_keeps_them_whole():
    base = nn.Dense(INPUTS, OUTPUTS, activation="softmax")
    base.matmul.shard(((2, 1), (4, 1)))
    assert strategies_of(LoRADense.from_dense(base, 2, 3).shard_like(base))["activation.softmax"] == ((2, 1),)


def test_without_a_strategy_of_the_base_nothing_is_set():
    base = nn.Dense(INPUTS, OUTPUTS)
    assert strategies_of(LoRADense.from_dense(base, 2, 3).shard_like(base)) == {}


def test_a_layout_of_the_base_is_refused():
    base = nn.Dense(INPUTS, OUTPUTS)
    layout = mindspore.Layout((2, 4), ("data", "model"))
    base.matmul.shard((layout("data", "None"), layout("model", "None")))
    with pytest.raises(ValueError, match="Layout"):
        LoRADense.from_dense(base, 2, 3).shard_like(base)


def test_a_layout_is_a_strategy():
    layout = mindspore.Layout((2, 4), ("data", "model"))
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3).shard(strategy_lora_add=(layout("data", "model"), layout("data", "model")))
    assert layer.add.attrs["in_layout"]


def test_the_prefix_encoder_shards_by_example_and_by_column():
    encoder = PrefixEncoder(3, 2, 2, 4, True, 5, 0.1)
    assert encoder.shard(2, 4) is encoder
    stored = strategies_of(encoder)
    assert stored["mindpet_delta_ptuning2_dense_in.matmul"] == ((1, 1), (4, 1))
    assert stored["transpose"] == ((2, 1, 1, 1, 1),)
    assert stored["split_layers"] == ((1, 2, 1, 1, 1),)
    for arguments in ((2.0, 1), (1, True), ("2", 1)):
        with pytest.raises(TypeError):
            encoder.shard(*arguments)
    with pytest.raises(ValueError):
        encoder.shard(0, 1)
