"""VeRA: the projection that a seed gives and that layers share, where it starts, merging, and PEFT's numbers."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import VeRADense, _reference, make_projection
from mindpet.utils.exceptions import NotPositiveError
from tests.delta.layers import INPUTS, OUTPUTS, random_input, randomise, values_of
from tests.delta.peers import adapt, compare, same_dropout, same_mask, share_values, train_both

WIDE = {"compute_dtype": mstype.float32}


def test_a_seed_gives_the_same_projection_everywhere():
    """The first draws of MT19937 for the seed 5489 are in its authors' own test: 3499211612, 581869302, 3890346734."""
    a, b = (part.asnumpy() for part in make_projection(3, 2, 1, seed=5489))
    draws = np.array([3499211612, 581869302, 3890346734, 3586334585, 545404204])
    share = draws % 2**24 / 2**24
    np.testing.assert_allclose(a[0], np.sqrt(6 / 3) * (2 * share[:3] - 1), rtol=1e-6)
    np.testing.assert_allclose(b[:, 0], np.sqrt(6 / 1) * (2 * share[3:] - 1), rtol=1e-6)
    again, other = make_projection(3, 2, 1, seed=5489), make_projection(3, 2, 1, seed=1)
    assert np.array_equal(again[0].asnumpy(), a)
    assert not np.array_equal(other[0].asnumpy(), a)


def test_layers_of_several_sizes_share_one_projection(mode):
    projection = make_projection(INPUTS, INPUTS + 2, 3, seed=4)
    assert [part.name for part in projection] == ["mindpet_state_vera_a", "mindpet_state_vera_b"]
    assert not any(part.requires_grad for part in projection)
    up, down = nn.Dense(INPUTS - 1, INPUTS + 2), nn.Dense(INPUTS, OUTPUTS)
    for name, dense in (("up", up), ("down", down)):
        dense.weight.name, dense.bias.name = f"{name}.weight", f"{name}.bias"
    cells = [VeRADense.from_dense(dense, 3, projection=projection) for dense in (up, down)]
    assert [part.name for part in projection] == ["mindpet_state_vera_a", "mindpet_state_vera_b"]
    assert {cell.mindpet_state_vera_a for cell in cells} == {projection[0]}
    names = [parameter.name for parameter in nn.CellList(cells, auto_prefix=False).get_parameters()]
    assert len(names) == len(set(names)) == 2 * 4 + 2
    for cell in cells:
        x = random_input((2, 3, cell.in_channels))
        plain = nn.Dense.construct(cell, Tensor(x)).asnumpy() if mode == "pynative" else None
        if plain is not None:
            assert np.array_equal(cell(Tensor(x)).asnumpy(), plain)
        cell.mindpet_delta_vera_lambda_b.set_data(Tensor(random_input((cell.out_channels,))))
        output = cell(Tensor(x)).asnumpy()
        expected = _reference.vera_dense(x.astype(np.float64), values_of(cell))
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
        merged = x @ cell.merged_values()["weight"].T + cell.bias.asnumpy()
        np.testing.assert_allclose(output, merged, rtol=1e-5, atol=1e-5)


def test_only_the_two_vectors_train_and_start_as_documented():
    layer = VeRADense(INPUTS, OUTPUTS, 3, d_initial=0.25)
    trained = {p.name: p.asnumpy() for p in layer.trainable_params() if p.name not in ("weight", "bias")}
    assert list(trained) == ["mindpet_delta_vera_lambda_b", "mindpet_delta_vera_lambda_d"]
    assert np.array_equal(trained["mindpet_delta_vera_lambda_b"], np.zeros(OUTPUTS, np.float32))
    assert np.array_equal(trained["mindpet_delta_vera_lambda_d"], np.full(3, 0.25, np.float32))
    default = VeRADense(INPUTS, OUTPUTS, 3)
    assert np.allclose(default.mindpet_delta_vera_lambda_d.asnumpy(), 0.1)
    expected = make_projection(INPUTS, OUTPUTS, 3, seed=0)
    assert np.array_equal(default.mindpet_state_vera_b.asnumpy(), expected[1].asnumpy())


def test_the_scaling_and_the_projection_are_values(mode):
    layer = randomise(VeRADense(INPUTS, OUTPUTS, 3, **WIDE))
    layer.scaling = Parameter(Tensor(1.0, mstype.float32), name="scaling", requires_grad=False)
    x = random_input((3, INPUTS))
    layer(Tensor(x))
    layer.mindpet_state_vera_a.set_data(layer.mindpet_state_vera_a * 2)
    expected = _reference.vera_dense(x.astype(np.float64), values_of(layer))
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-5)
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    plain = x @ layer.weight.asnumpy().T + layer.bias.asnumpy()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layer.merged_values()["weight"], layer.weight.asnumpy())


def test_a_weight_stored_the_other_way_round_merges_the_same():
    layer = randomise(VeRADense(INPUTS, OUTPUTS, 3))
    change = layer.merged_values()["weight"] - layer.weight.asnumpy()
    layer.matmul = ops.MatMul()
    layer.weight = Parameter(Tensor(layer.weight.asnumpy().T.copy()), name="weight")
    turned = layer.merged_values()["weight"] - layer.weight.asnumpy()
    np.testing.assert_allclose(turned, change.T, atol=1e-6)


def test_training_drops_the_branch_alone(mode):
    layer = randomise(VeRADense(INPUTS, OUTPUTS, 3, 0.5, **WIDE)).set_train()
    mask = same_mask(layer.vera_dropout, (4, INPUTS))
    x, values = random_input((4, INPUTS)).astype(np.float64), values_of(layer)
    branch = _reference.vera_dense(x * mask, values) - _reference.dense(x * mask, values)
    expected = _reference.dense(x, values) + branch
    np.testing.assert_allclose(layer(Tensor(x.astype(np.float32))).asnumpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_layer_does_not_train(mode):
    layer = VeRADense(INPUTS, OUTPUTS, 3).set_train()
    layer.merged = True
    with pytest.raises(ValueError, match="unmerge"):
        layer(Tensor(random_input((3, INPUTS))))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((0, 4, 3), NotPositiveError, "in_channels"),
        ((6, 4.0, 3), TypeError, "out_channels"),
        ((6, 4, True), TypeError, "vera_rank"),
        ((6, 4, 3, -1), ValueError, "seed"),
        ((6, 4, 3, 1.5), TypeError, "seed"),
    ],
)
def test_a_wrong_projection_is_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        make_projection(*arguments)


def _beside_peft(dropout=0.0, seed=11):
    import torch
    from peft import VeraConfig

    config = VeraConfig(r=3, vera_dropout=dropout, target_modules=["layer"], projection_prng_key=seed)
    peer = adapt(torch.nn.Linear(INPUTS, OUTPUTS), config)
    projection = make_projection(INPUTS, OUTPUTS, 3, seed)
    layer = VeRADense(INPUTS, OUTPUTS, 3, dropout, projection=projection, **WIDE)
    for parameter in layer.trainable_params():
        parameter.set_data(Tensor(random_input(parameter.shape, seed=len(parameter.name))))
    pairs = {
        "weight": peer.base_layer.weight,
        "bias": peer.base_layer.bias,
        "mindpet_delta_vera_lambda_b": peer.vera_lambda_b["default"],
        "mindpet_delta_vera_lambda_d": peer.vera_lambda_d["default"],
        "mindpet_state_vera_a": peer.vera_A["default"],
        "mindpet_state_vera_b": peer.vera_B["default"],
    }
    for name in ("mindpet_state_vera_a", "mindpet_state_vera_b"):
        assert np.array_equal(getattr(layer, name).asnumpy(), pairs[name].numpy())
    share_values(layer, pairs)
    return layer, peer, pairs


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5, 2**40 + 1])
def test_a_seed_gives_pefts_projection_bit_for_bit(seed):
    import torch
    from peft.tuners.vera.model import _kaiming_init

    generator = torch.Generator().manual_seed(seed)
    for ours, shape in zip(make_projection(773, 301, 256, seed), ((256, 773), (301, 256)), strict=True):
        assert np.array_equal(ours.asnumpy(), _kaiming_init(shape, generator).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_equals_peft(mode, dropout):
    layer, peer, pairs = _beside_peft(dropout)
    if dropout:
        layer.set_train()
        peer.train()
        peer.vera_dropout["default"] = same_dropout(layer.vera_dropout, (6, INPUTS))
    compare(layer, peer, pairs, random_input((2, 3, INPUTS)))
    if not dropout:
        peer.merge()
        np.testing.assert_allclose(layer.merged_values()["weight"], pairs["weight"].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_it_trains_as_peft_does():
    layer, peer, pairs = _beside_peft()
    for name, parameter in layer.parameters_and_names():
        parameter.requires_grad = "mindpet_delta" in name
        if name in ("weight", "bias"):
            pairs[name].requires_grad = False
    train_both(layer, peer, random_input((8, INPUTS)))
    for name, parameter in layer.parameters_and_names():
        np.testing.assert_allclose(parameter.asnumpy(), pairs[name].detach(), rtol=1e-5, atol=1e-5, err_msg=name)
