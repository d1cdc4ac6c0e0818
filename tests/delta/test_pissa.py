"""PiSSA: what its factors start as, what its change is counted from, and PEFT's numbers."""

import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import LoRADense, PiSSADense, _reference
from mindpet.delta.pissa import principal_factors
from tests.delta.layers import INPUTS, NUMPY, OUTPUTS, Side, random_input, randomise, values_of
from tests.delta.peers import adapt, compare, same_dropout, same_mask, train_both

WIDE = {"compute_dtype": mstype.float32}


def test_the_factors_are_the_principal_part_of_the_weight():
    weight = np.random.default_rng(0).normal(size=(9, 14))
    left, values, right = np.linalg.svd(weight)
    lora_a, lora_b = principal_factors(weight, 3, 2.5)
    np.testing.assert_allclose(2.5 * lora_b @ lora_a, (left[:, :3] * values[:3]) @ right[:3], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(lora_a, axis=1), np.linalg.norm(lora_b, axis=0), rtol=1e-6)
    assert all(row[np.abs(row).argmax()] > 0 for row in lora_a)
    negative = principal_factors(weight, 3, -2.5)
    assert np.array_equal(negative[0], lora_a)
    assert np.array_equal(negative[1], -lora_b)


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_it_starts_as_the_base_layer_bit_for_bit(mode, dtype):
    base = nn.Dense(70, 33, dtype=dtype)
    kept = base.weight.asnumpy().copy()
    x = Tensor(random_input((5, 70), NUMPY[dtype]))
    plain = base(x).asnumpy()
    cells = [PiSSADense.from_dense(base, 4, 3, param_init_type=added) for added in NUMPY]
    for output in Side(cells)(x):
        assert np.array_equal(output.asnumpy(), plain)
    assert np.array_equal(base.weight.asnumpy(), kept)
    assert abs(cells[0].mindpet_delta_lora_b.asnumpy()).min() > 0


def test_a_weight_stored_the_other_way_round_has_the_same_factors():
    base = randomise(nn.Dense(INPUTS, OUTPUTS))
    turned = nn.Dense(INPUTS, OUTPUTS)
    turned.matmul = ops.MatMul()
    turned.weight = Tensor(base.weight.asnumpy().T.copy())
    one, other = (PiSSADense.from_dense(dense, 2, 3) for dense in (base, turned))
    for mine, yours in zip(one.factors(), other.factors(), strict=True):
        np.testing.assert_allclose(mine, yours, atol=1e-6)
    one.mindpet_delta_lora_a.set_data(one.mindpet_delta_lora_a + 1)
    other.mindpet_delta_lora_a.set_data(other.mindpet_delta_lora_a + 1)
    np.testing.assert_allclose(one.merged_values()["weight"], other.merged_values()["weight"].T, atol=1e-5)


def test_its_factors_of_twice_the_rank_are_plain_lora(mode):
    layer = randomise(PiSSADense(INPUTS, OUTPUTS, 2, 3, **WIDE))
    lora_a, lora_b = layer.factors()
    plain = LoRADense.from_dense(_base_of(layer), 4, 6, lora_a_init=Tensor(lora_a), lora_b_init=Tensor(lora_b))
    again = PiSSADense(INPUTS, OUTPUTS, 2, 3, **WIDE)
    again.weight.set_data(layer.weight)
    again.bias.set_data(layer.bias)
    again.put_factors(lora_a, lora_b)
    x = Tensor(random_input((3, INPUTS)))
    one, two, three = Side([layer, plain, again])(x)
    np.testing.assert_allclose(one.asnumpy(), two.asnumpy(), rtol=1e-5, atol=1e-5)
    assert np.array_equal(one.asnumpy(), three.asnumpy())
    merged = x.asnumpy() @ layer.merged_values()["weight"].T + layer.bias.asnumpy()
    np.testing.assert_allclose(one.asnumpy(), merged, rtol=1e-5, atol=1e-5)


def _base_of(layer):
    base = nn.Dense(INPUTS, OUTPUTS)
    base.weight, base.bias = layer.weight, layer.bias
    return base


def test_the_first_product_is_not_dropped(mode):
    layer = randomise(PiSSADense(INPUTS, OUTPUTS, 2, 3, 0.5, **WIDE)).set_train()
    mask = same_mask(layer.lora_dropout, (4, INPUTS))
    x, values = random_input((4, INPUTS)).astype(np.float64), values_of(layer)
    first = x @ values["mindpet_delta_lora_first_a"].T @ values["mindpet_delta_lora_first_b"].T
    now = (x * mask) @ values["mindpet_delta_lora_a"].T @ values["mindpet_delta_lora_b"].T
    expected = _reference.dense(x, values) + 1.5 * (now - first)
    np.testing.assert_allclose(layer(Tensor(x.astype(np.float32))).asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_only_the_trained_factors_train():
    layer = PiSSADense(INPUTS, OUTPUTS, 2, 3)
    assert [p.name for p in layer.trainable_params() if "lora" in p.name] == [
        "mindpet_delta_lora_a",
        "mindpet_delta_lora_b",
    ]


def test_a_merged_layer_does_not_train(mode):
    layer = PiSSADense(INPUTS, OUTPUTS, 2, 3).set_train()
    layer.merged = True
    with pytest.raises(ValueError, match="unmerge"):
        layer(Tensor(random_input((3, INPUTS))))


def _beside_peft(dropout=0.0):
    """Start both from the same weight, whose singular values lie apart, so that only the signs are free."""
    import torch
    from peft import LoraConfig

    left, _, right = np.linalg.svd(random_input((10, 12)).astype(np.float64), full_matrices=False)
    base = nn.Dense(12, 10)
    base.weight.set_data(Tensor((left * np.geomspace(3, 0.1, 10) @ right).astype(np.float32)))
    module = torch.nn.Linear(12, 10)
    module.weight.data = torch.tensor(base.weight.asnumpy())
    module.bias.data = torch.tensor(base.bias.asnumpy())
    for parameter in base.get_parameters():
        parameter.requires_grad = False
    config = LoraConfig(r=3, lora_alpha=4, lora_dropout=dropout, init_lora_weights="pissa", target_modules=["layer"])
    return PiSSADense.from_dense(base, 3, 4, dropout), adapt(module, config)


def _align(layer, peer):
    """Give PEFT's factors our signs, which the decomposition leaves open."""
    import torch

    ours, theirs = layer.mindpet_delta_lora_a.asnumpy(), peer.lora_A.default.weight
    signs = torch.tensor(np.sign((ours * theirs.detach().numpy()).sum(1)))
    theirs.data *= signs[:, None]
    peer.lora_B.default.weight.data *= signs
    pairs = {
        "mindpet_delta_lora_a": theirs,
        "mindpet_delta_lora_b": peer.lora_B.default.weight,
    }
    for name, value in pairs.items():
        np.testing.assert_allclose(getattr(layer, name).asnumpy(), value.detach(), rtol=1e-5, atol=1e-5)
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_equals_peft(mode, dropout):
    layer, peer = _beside_peft(dropout)
    pairs = _align(layer, peer)
    if dropout:
        layer.set_train()
        peer.train()
        peer.lora_dropout["default"] = same_dropout(layer.lora_dropout, (6, 12))
    compare(layer, peer, pairs, random_input((2, 3, 12)))


@pytest.mark.slow
def test_it_trains_as_peft_does_whatever_the_signs():
    layer, peer = _beside_peft()
    train_both(layer, peer, random_input((8, 12)))
    peer.merge()
    np.testing.assert_allclose(
        layer.merged_values()["weight"], peer.base_layer.weight.detach().numpy(), rtol=1e-5, atol=1e-5
    )
