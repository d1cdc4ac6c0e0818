"""IA3: what only its two forms have; formula, gradients and taking over a layer are tested beside the other methods."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import IA3Dense
from tests.delta.layers import INPUTS, OUTPUTS, Probed, Side, random_input, randomise, strategies_of, values_of

WIDE = {"compute_dtype": mstype.float32}
BOTH = pytest.mark.parametrize("feedforward", [False, True], ids=["outputs", "inputs"])


def _transposed(has_bias=True):
    """A client's dense layer whose weight is (in, out)."""
    dense = nn.Dense(INPUTS, OUTPUTS, has_bias=has_bias)
    dense.matmul = ops.MatMul(transpose_b=False)
    dense.weight = Parameter(Tensor(random_input((INPUTS, OUTPUTS), seed=9)), name="weight")
    return dense


@BOTH
def test_the_vector_starts_at_ones_in_its_own_shape(feedforward):
    layer = IA3Dense(INPUTS, OUTPUTS, feedforward)
    scale = layer.mindpet_delta_ia3_scale
    assert scale.name == "mindpet_delta_ia3_scale"
    assert scale.dtype == mstype.float32
    assert np.array_equal(scale.asnumpy(), np.ones(INPUTS if feedforward else OUTPUTS, np.float32))


@BOTH
def test_small_changes_survive_half_products(mode, feedforward):
    """1 + 2^-11 is no float16 number, but 8188 times that is nearly 8192, the float16 number after 8188."""
    layer = IA3Dense(1, 1, feedforward, weight_init="ones", has_bias=False)
    layer.mindpet_delta_ia3_scale.set_data(Tensor([1 + 2.0**-11]))
    assert layer(Tensor([[8188.0]], mstype.float32)).asnumpy()[0, 0] == 8192.0


@BOTH
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("base", ["dense", "transposed"])
def test_the_merged_values_are_the_layer(base, feedforward, has_bias):
    dense = randomise(nn.Dense(INPUTS, OUTPUTS, has_bias=has_bias)) if base == "dense" else _transposed(has_bias)
    layer = randomise(IA3Dense.from_dense(dense, feedforward))
    x = Tensor(random_input((3, INPUTS)))
    expected = layer(x).asnumpy()
    merged = layer.merged_values()
    assert set(merged) == ({"weight", "bias"} if has_bias and not feedforward else {"weight"})
    for attribute, values in merged.items():
        assert values.dtype == np.float32
        getattr(dense, attribute).set_data(Tensor(values))
    np.testing.assert_allclose(dense(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)


@BOTH
def test_the_scaling_switches_the_change_off_by_value(mode, feedforward):
    layer = randomise(IA3Dense(INPUTS, OUTPUTS, feedforward, **WIDE))
    x = Tensor(random_input((3, INPUTS)))
    full = layer(x).asnumpy()
    plain = x.asnumpy() @ layer.weight.asnumpy().T + layer.bias.asnumpy()
    layer = randomise(IA3Dense(INPUTS, OUTPUTS, feedforward, **WIDE))
    layer.scaling = Parameter(Tensor(1.0, mstype.float32), name="scaling", requires_grad=False)
    assert np.array_equal(layer(x).asnumpy(), full)
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    np.testing.assert_allclose(layer(x).asnumpy(), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.merged_values()["weight"], layer.weight.asnumpy())


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"feedforward": 1}, TypeError, "feedforward"),
        ({"ia3_init": "no_initializer"}, ValueError, "ia3_init"),
        ({"ia3_init": Tensor(np.ones(INPUTS, np.float32))}, ValueError, "ia3_init"),
        ({"param_init_type": mstype.int32}, TypeError, "param_init_type"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        IA3Dense(INPUTS, OUTPUTS, **arguments)


@BOTH
def test_shard_and_shard_like_reach_the_primitive_that_is_there(feedforward):
    mul, split = ("input_mul", ((2, 1), (1,))) if feedforward else ("output_mul", ((2, 4), (4,)))
    layer = IA3Dense(INPUTS, OUTPUTS, feedforward)
    layer.shard(strategy_ia3_input_mul=((2, 1), (1,)), strategy_ia3_output_mul=((2, 4), (4,)))
    assert strategies_of(layer) == {mul: split}
    base = nn.Dense(INPUTS, OUTPUTS, activation="relu")
    base.matmul.shard(((2, 1), (4, 1)))
    assert strategies_of(IA3Dense.from_dense(base, feedforward).shard_like(base)) == {
        "matmul": ((2, 1), (4, 1)),
        "bias_add": ((2, 4), (4,)),
        mul: split,
        "activation.relu": ((2, 4),),
    }


@pytest.mark.slow
@pytest.mark.parametrize("has_bias", [True, False])
@BOTH
def test_it_equals_peft(mode, feedforward, has_bias):
    import torch
    from peft import IA3Config, get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(INPUTS, OUTPUTS, bias=has_bias)

        def forward(self, x):
            return self.dense(x)

    targets = {"target_modules": ["dense"], "feedforward_modules": ["dense"] if feedforward else []}
    peer = get_peft_model(Holder(), IA3Config(**targets))
    layer = randomise(IA3Dense(INPUTS, OUTPUTS, feedforward, has_bias=has_bias, **WIDE))
    dense = peer.base_model.model.dense
    pairs = {
        "weight": dense.base_layer.weight,
        "bias": dense.base_layer.bias,
        "mindpet_delta_ia3_scale": dense.ia3_l.default,
    }
    for name, value in values_of(layer).items():
        pairs[name].data = torch.tensor(value, dtype=torch.float32).reshape(pairs[name].shape)
        pairs[name].requires_grad = True

    x, probe = random_input((2, 3, INPUTS)), random_input((2, 3, OUTPUTS), seed=2)
    given = torch.tensor(x, requires_grad=True)
    output = peer(given)
    (output * torch.tensor(probe)).sum().backward()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), output.detach().numpy(), rtol=1e-5, atol=1e-5)
    weights = list(layer.get_parameters())
    by_input, by_weight = mindspore.grad(Probed(Side([layer]), [probe]), 0, weights)(Tensor(x))
    np.testing.assert_allclose(by_input.asnumpy(), given.grad.numpy(), rtol=1e-4, atol=1e-4)
    for weight, gradient in zip(weights, by_weight, strict=True):
        expected = pairs[weight.name.split(".")[-1]].grad.numpy().reshape(weight.shape)
        np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-4, atol=1e-4)

    merged = layer.merged_values()
    peer.merge_adapter()
    for name, values in merged.items():
        np.testing.assert_allclose(values, pairs[name].detach().numpy(), rtol=1e-6)
