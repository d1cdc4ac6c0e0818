"""Every activation that MindSpore names, by its formula, in every layer."""

import re

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import AdapterLayer, LoRADense, LowRankAdapterLayer
from mindpet.delta._activations import ACTIVATIONS
from mindpet.delta._reference import ACTIVATIONS as FORMULAS
from tests.delta.layers import (
    INPUTS,
    LAYERS,
    NUMPY,
    Probed,
    Side,
    primitives_of,
    random_input,
    randomise,
    strategies_of,
    values_of,
)

_TOLERANCE = {mstype.float32: 2e-4, mstype.float16: 2e-2}


def test_the_names_are_those_of_mindspore():
    with pytest.raises(KeyError) as raised:
        nn.get_activation("no_activation")
    known = re.findall(r"'(\w+)'", str(raised.value).split("[", 1)[1])
    assert {*ACTIVATIONS, "threshold"} == set(known)
    assert {*FORMULAS, "rrelu"} == set(ACTIVATIONS)


@pytest.mark.parametrize("dtype", _TOLERANCE, ids=str)
def test_every_activation_follows_its_formula_in_every_layer(mode, dtype):
    x = (2 * random_input((2, 2, 3, INPUTS))).astype(NUMPY[dtype])
    dtypes = {"compute_dtype": dtype, "param_init_type": dtype}
    cases = []
    for name in FORMULAS:
        # It takes seconds, so one layer of each kind stands for the others, save in PyNative mode and float32.
        every = (mode, dtype) == ("pynative", mstype.float32)
        for layer in LAYERS.values() if every else (LAYERS["lora"], LAYERS["adapter"]):
            argument = "activation" if layer.has_base else "non_linearity"
            cases.append((name, layer, layer.make(**{argument: name}, **dtypes)))
    network = randomise(Side([cell for _, _, cell in cases]))
    for _, _, cell in cases:
        for parameter in cell.get_parameters():
            if parameter.shape == (1,):  # the slope of prelu stays at its start, which the formula has
                parameter.set_data(Tensor(np.full(1, 0.25), parameter.dtype))
    for (name, layer, cell), output in zip(cases, network(Tensor(x)), strict=True):
        expected = layer.formula(x.astype(np.float64), values_of(cell), name)
        np.testing.assert_allclose(
            output.asnumpy(), expected, rtol=_TOLERANCE[dtype], atol=_TOLERANCE[dtype], err_msg=name
        )
        assert output.dtype == dtype


def test_the_gradient_passes_every_activation():
    """Where the formula is smooth, so that finite differences mean something; MindSpore has its own kernel for most."""
    x = random_input((7, 5)) + np.float32(0.01)
    for name, formula in FORMULAS.items():
        if name == "softmax2d":
            continue
        exact = x.astype(np.float64)
        step = 1e-6 * np.sign(exact + 1e-9)
        probe = random_input(x.shape, seed=3)
        numeric = np.empty_like(exact)
        for index in np.ndindex(exact.shape):
            shift = np.zeros_like(exact)
            shift[index] = step[index]
            numeric[index] = ((formula(exact + shift) - formula(exact - shift)) * probe).sum() / (2 * step[index])
        gradient = mindspore.grad(Probed(Side([ACTIVATIONS[name]()]), [probe]))(Tensor(x))
        np.testing.assert_allclose(gradient.asnumpy(), numeric, rtol=1e-3, atol=1e-3, err_msg=name)


def test_rrelu_is_random_below_zero_only(mode):
    layer = LoRADense(INPUTS, INPUTS, 1, 1, weight_init=Tensor(np.eye(INPUTS, dtype=np.float32)), activation="rrelu")
    x = random_input((50, INPUTS))
    output = layer(Tensor(x)).asnumpy()
    assert np.array_equal(output[x >= 0], x[x >= 0])
    slopes = output[x < 0] / x[x < 0]
    assert 1 / 8 - 0.01 <= slopes.min() < slopes.max() <= 1 / 3 + 0.01


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), ops.ReLU(), nn.GELU(approximate=False)], ids=str)
def test_an_activation_handed_in_is_used_itself(activation):
    layer = LoRADense(INPUTS, 4, 2, 3, activation=activation, compute_dtype=mstype.float32)
    assert layer.activation is activation
    x = Tensor(random_input((3, INPUTS)))
    plain = x.asnumpy() @ layer.weight.asnumpy().T
    assert np.allclose(layer(x).asnumpy(), activation(Tensor(plain)).asnumpy(), atol=1e-5)


def test_softmax2d_sees_the_leading_axes(mode):
    x = Tensor(random_input((2, 3, 2, INPUTS)))
    for cell in (
        LoRADense(INPUTS, 4, 2, 3, activation="softmax2d", compute_dtype=mstype.float32),
        AdapterLayer(INPUTS, 4, "softmax2d", compute_dtype=mstype.float32),
        LowRankAdapterLayer(INPUTS, 2, 1, non_linearity="softmax2d", compute_dtype=mstype.float32),
    ):
        assert np.isfinite(cell(x).asnumpy()).all()
    dense = LoRADense(INPUTS, 4, 2, 3, activation="softmax2d", compute_dtype=mstype.float32)
    assert np.allclose(dense(x).asnumpy().sum(1), 1, atol=1e-5)


_WITHOUT_PRIMITIVES = [
    nn.GELU(),
    nn.Hardtanh(-0.5, 0.25),
    nn.HSwish(),
    nn.LeakyReLU(0.1),
    nn.LeakyReLU(1.5),
    nn.SiLU(),
    nn.Softmin(),
    nn.Tanhshrink(),
]


@pytest.mark.parametrize("activation", _WITHOUT_PRIMITIVES, ids=lambda cell: type(cell).__name__)
def test_a_cell_without_primitives_can_be_sharded_and_computes_the_same(activation):
    base = nn.Dense(INPUTS, 4, activation=activation)
    base.matmul.shard(((2, 1), (4, 1)))
    x = Tensor(random_input((5, INPUTS)))
    layer = LoRADense.from_dense(base, 2, 3)
    assert layer.activation is activation
    layer.shard_like(base)
    stored = {path for path in strategies_of(layer) if path.startswith("activation.")}
    assert stored == {path for path in primitives_of(layer) if path.startswith("activation.")}
    assert stored
    np.testing.assert_allclose(layer(x).asnumpy(), base(x).asnumpy(), rtol=1e-6, atol=1e-6)


def test_an_activation_of_unknown_make_is_left_to_the_planner():
    activation = nn.SequentialCell(nn.ReLU(), nn.Tanh())
    base = nn.Dense(INPUTS, 4, activation=activation)
    base.matmul.shard(((2, 1), (4, 1)))
    layer = LoRADense.from_dense(base, 2, 3).shard_like(base)
    assert layer.activation is activation
    assert not [path for path in strategies_of(layer) if path.startswith("activation")]
    assert strategies_of(layer)["add"] == ((2, 4), (2, 4))
