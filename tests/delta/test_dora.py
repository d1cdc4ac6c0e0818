"""DoRA: where it starts, what its norm follows, dropout, switching off, merging, and PEFT's numbers."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import DoRADense, _reference
from tests.delta.layers import INPUTS, NUMPY, OUTPUTS, Side, random_input, randomise, values_of
from tests.delta.peers import adapt, compare, same_dropout, same_mask, share_values, train_both

WIDE = {"compute_dtype": mstype.float32}


def _dense(inputs, outputs, dtype=mstype.float32, seed=0):
    """Return a dense layer with rows of zeros and of very different lengths."""
    dense = nn.Dense(inputs, outputs, dtype=dtype)
    weight = np.random.default_rng(seed).normal(size=(outputs, inputs)) * np.geomspace(1e-3, 1e2, outputs)[:, None]
    weight[0] = 0
    dense.weight.set_data(Tensor(weight.astype(NUMPY[dtype])))
    return dense


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_it_starts_as_the_base_layer_bit_for_bit(mode, dtype):
    """Whatever the order in which a device sums up the squares of many inputs."""
    sizes = ((1, 2), (37, 19), (768, 40), (3001, 7)) if mode == "pynative" else ((37, 19), (3001, 7))
    for inputs, outputs in sizes:
        base = _dense(inputs, outputs, dtype, seed=inputs)
        x = Tensor(random_input((5, inputs), NUMPY[dtype]))
        plain = base(x).asnumpy()
        cells = [DoRADense.from_dense(base, 1, 3, param_init_type=added) for added in NUMPY]
        for output in Side(cells)(x):
            assert np.array_equal(output.asnumpy(), plain)


def test_a_weight_stored_the_other_way_round_has_the_same_norms(mode):
    base = _dense(INPUTS, OUTPUTS)
    turned = nn.Dense(INPUTS, OUTPUTS)
    turned.matmul = ops.MatMul()
    turned.weight = Parameter(Tensor(base.weight.asnumpy().T.copy()), name="weight")
    turned.bias = base.bias
    x = Tensor(random_input((3, INPUTS)))
    cells = [_moved(DoRADense.from_dense(dense, 2, 3)) for dense in (base, turned)]
    one, other = Side(cells)(x)
    np.testing.assert_allclose(one.asnumpy(), other.asnumpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(cells[0].merged_values()["weight"], cells[1].merged_values()["weight"].T)


def _moved(cell):
    """Change what is trained, and leave the base."""
    for seed, parameter in enumerate(cell.trainable_params()):
        if "mindpet_delta" in parameter.name:
            parameter.set_data(Tensor(random_input(parameter.shape, seed=seed)))
    return cell


def test_another_weight_has_another_norm_and_a_reset_follows_it(mode):
    """The magnitude stays what it was, as in PEFT; the norm that was noted at first is not used any more."""
    x = random_input((3, INPUTS))
    stale, fresh = (DoRADense.from_dense(_dense(INPUTS, OUTPUTS), 2, 3) for _ in range(2))
    for cell in (stale, fresh):
        cell.weight.set_data(Tensor(random_input((OUTPUTS, INPUTS), seed=7)))
    fresh.reset_magnitude()
    outputs = Side([stale, fresh])(Tensor(x))
    expected = _reference.dora_dense(x.astype(np.float64), values_of(stale), 1.5)
    np.testing.assert_allclose(outputs[0].asnumpy(), expected, rtol=1e-5, atol=1e-5)
    plain = x @ fresh.weight.asnumpy().T + fresh.bias.asnumpy()
    np.testing.assert_allclose(outputs[1].asnumpy(), plain, rtol=1e-5, atol=1e-5)
    assert not np.allclose(expected, plain, atol=1e-2)


def test_training_the_magnitude_leaves_the_noted_norm_alone():
    """MindSpore lets a Parameter share the memory of the Tensor that it was given."""
    layer = DoRADense.from_dense(_dense(INPUTS, OUTPUTS), 2, 3)
    noted = layer.first_norm.asnumpy().copy()
    ops.assign(layer.mindpet_delta_lora_magnitude, Tensor(2 * noted))
    assert np.array_equal(layer.first_norm.asnumpy(), noted)


def test_training_drops_the_input_of_direction_and_factors_alike(mode):
    layer = randomise(DoRADense(INPUTS, OUTPUTS, 2, 3, 0.5, **WIDE)).set_train()
    mask = same_mask(layer.lora_dropout, (4, INPUTS))
    assert 0 < (mask == 0).mean() < 1
    x, values = random_input((4, INPUTS)).astype(np.float64), values_of(layer)
    full = x @ values["weight"].T
    dropped = _reference.dora_dense(x * mask, values, 1.5)
    expected = full + dropped - (x * mask) @ values["weight"].T
    np.testing.assert_allclose(layer(Tensor(x.astype(np.float32))).asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_scaling_of_zero_gives_the_base_layer_back(mode):
    layer = randomise(DoRADense(INPUTS, OUTPUTS, 2, 3, **WIDE))
    layer.scaling = Parameter(Tensor(1.5, mstype.float32), name="scaling", requires_grad=False)
    x = random_input((3, INPUTS))
    expected = _reference.dora_dense(x.astype(np.float64), values_of(layer), 1.5)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-5)
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    plain = Tensor(x) @ layer.weight.T + layer.bias
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), plain.asnumpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(layer.merged_values()["weight"], layer.weight.asnumpy())


def test_merged_values_compute_what_the_layer_computes(mode):
    layer = randomise(DoRADense(INPUTS, OUTPUTS, 2, 3, **WIDE))
    x = random_input((3, INPUTS))
    merged = x @ layer.merged_values()["weight"].T + layer.bias.asnumpy()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), merged, rtol=1e-5, atol=1e-5)
    lengths = np.linalg.norm(layer.merged_values()["weight"], axis=1)
    np.testing.assert_allclose(lengths, abs(layer.mindpet_delta_lora_magnitude.asnumpy()), rtol=1e-6)


def test_a_merged_layer_does_not_train(mode):
    layer = DoRADense(INPUTS, OUTPUTS, 2, 3).set_train()
    layer.merged = True
    with pytest.raises(ValueError, match="unmerge"):
        layer(Tensor(random_input((3, INPUTS))))


def _beside_peft(has_bias, dropout=0.0):
    import torch
    from peft import LoraConfig

    config = LoraConfig(r=3, lora_alpha=4, lora_dropout=dropout, use_dora=True, target_modules=["layer"])
    peer = adapt(torch.nn.Linear(INPUTS, OUTPUTS, bias=has_bias), config)
    layer = randomise(DoRADense(INPUTS, OUTPUTS, 3, 4, dropout, has_bias=has_bias, **WIDE))
    layer.mindpet_delta_lora_magnitude.set_data(abs(layer.mindpet_delta_lora_magnitude))
    pairs = {
        "weight": peer.base_layer.weight,
        "bias": peer.base_layer.bias,
        "mindpet_delta_lora_a": peer.lora_A.default.weight,
        "mindpet_delta_lora_b": peer.lora_B.default.weight,
        "mindpet_delta_lora_magnitude": peer.lora_magnitude_vector.default.weight,
    }
    share_values(layer, pairs)
    return layer, peer, pairs


@pytest.mark.slow
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_equals_peft(mode, has_bias):
    layer, peer, pairs = _beside_peft(has_bias)
    compare(layer, peer, pairs, random_input((2, 3, INPUTS)))
    peer.merge()
    np.testing.assert_allclose(layer.merged_values()["weight"], pairs["weight"].detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_it_equals_peft_with_dropout(mode):
    layer, peer, pairs = _beside_peft(True, 0.5)
    layer.set_train()
    peer.train()
    peer.lora_dropout["default"] = same_dropout(layer.lora_dropout, (6, INPUTS))
    compare(layer, peer, pairs, random_input((2, 3, INPUTS)))


@pytest.mark.slow
def test_it_trains_as_peft_does():
    layer, peer, pairs = _beside_peft(True)
    for name, parameter in layer.parameters_and_names():
        parameter.requires_grad = pairs[name].requires_grad = "mindpet_delta" in name
    train_both(layer, peer, random_input((8, INPUTS)))
    for name, parameter in layer.parameters_and_names():
        np.testing.assert_allclose(parameter.asnumpy(), pairs[name].detach(), rtol=1e-5, atol=1e-5, err_msg=name)
