"""Every dense layer against its float64 formula: outputs and gradients, over dtypes, bias, activation and shape."""

import functools
import itertools

import mindspore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor
from mindspore import dtype as mstype

from mindpet.delta import AdapterLayer, LoRADense, LowRankAdapterLayer, _reference
from mindpet.delta._cases import central_differences
from tests.delta.layers import INPUTS, LAYERS, NUMPY, OUTPUTS, Probed, Side, random_input, randomise, values_of
from tests.scale import REPETITION

_SHAPES = {"n": (5,), "b_s": (2, 3), "b_s_t": (2, 1, 3)}
# (input dtype, compute dtype, dtype of the added parameters): float16 keeps 11 bits, so that values of a few units
# and sums of up to six products are off by some thousandths.
_DTYPES = {
    "float32": (mstype.float32, mstype.float32, mstype.float32, 1e-5),
    "float16": (mstype.float16, mstype.float16, mstype.float16, 1e-2),
    "mixed": (mstype.float32, mstype.float16, mstype.float32, 1e-2),
}


def _variants(layer, compute_dtype, param_init_type):
    """Return (cell, activation) for bias x activation; a layer without base has the activation in its bottleneck."""
    dtypes = {"compute_dtype": compute_dtype, "param_init_type": param_init_type}
    if not layer.has_base:
        return [(layer.make(non_linearity=name, **dtypes), name) for name in ("gelu", "relu")]
    return [
        (layer.make(has_bias=has_bias, activation=activation, **dtypes), activation)
        for has_bias, activation in itertools.product((True, False), (None, "gelu"))
    ]


# A graph of all layers takes seconds to compile: the fast tests have each dtype and each shape once.
_IN_GRAPHS = (("float32", "n"), ("float16", "b_s_t"), ("mixed", "b_s"))


@pytest.mark.parametrize(
    ("mode", "dtypes", "leading"),
    [
        pytest.param(mode, *case, marks=REPETITION if mode == "graph" and case not in _IN_GRAPHS else [])
        for mode in ("graph", "pynative")
        for case in (*itertools.product(("float32", "float16"), _SHAPES), ("mixed", "b_s"))
    ],
    indirect=["mode"],
)
def test_outputs_follow_the_formula(mode, dtypes, leading):
    input_dtype, compute_dtype, param_init_type, tolerance = _DTYPES[dtypes]
    cases = [(layer, *case) for layer in LAYERS.values() for case in _variants(layer, compute_dtype, param_init_type)]
    network = randomise(Side([cell for _, cell, _ in cases]))
    x = random_input((*_SHAPES[leading], INPUTS), NUMPY[input_dtype])
    for (layer, cell, activation), output in zip(cases, network(Tensor(x)), strict=True):
        expected = layer.formula(x.astype(np.float64), values_of(cell), activation)
        assert output.dtype == input_dtype
        assert output.shape == expected.shape
        np.testing.assert_allclose(output.asnumpy(), expected, rtol=tolerance, atol=tolerance)
        assert {p.dtype for p in cell.get_parameters() if "mindpet_delta" in p.name} == {param_init_type}


def test_products_run_in_the_compute_dtype(mode):
    """1 + 2^-12 survives float32 and not float16, whatever the dtype of input and parameters."""
    x, fine = Tensor([[1.0, 1.0]], mstype.float32), 2.0**-12
    for compute_dtype, expected in ((mstype.float32, 1 + fine), (mstype.float16, 1.0)):
        layer = LoRADense(2, 1, 1, 1, weight_init="zeros", compute_dtype=compute_dtype)
        layer.mindpet_delta_lora_a.set_data(Tensor([[1.0, fine]]))
        layer.mindpet_delta_lora_b.set_data(Tensor([[1.0]]))
        assert layer(x).asnumpy()[0, 0] == np.float32(expected)


def _gradient_cases(dtype):
    """Return one case with and one without bias and activation of each layer that has them, else one with "gelu"."""
    dtypes = {"compute_dtype": dtype, "param_init_type": dtype}
    cases = []
    for layer in LAYERS.values():
        if layer.has_base:
            cases.append((layer, layer.make(has_bias=False, **dtypes), None))
            cases.append((layer, layer.make(activation="gelu", **dtypes), "gelu"))
        else:
            cases.append((layer, layer.make(**dtypes), "gelu"))
    return cases


_X = random_input((2, 2, INPUTS))


@functools.lru_cache(maxsize=4)
def _gradients(mode, dtype):
    """Return the cases and, of one scalar, the probes and the gradients of `_X` and of each parameter by its id."""
    cases = _gradient_cases(dtype)
    network = randomise(Side([cell for _, cell, _ in cases]))
    shapes = [(2, 2, OUTPUTS if layer.has_base else INPUTS) for layer, _, _ in cases]
    probes = [random_input(shape, seed=seed) for seed, shape in enumerate(shapes)]
    weights = network.trainable_params()
    by_input, by_weight = mindspore.grad(Probed(network, probes), 0, weights)(Tensor(_X.astype(NUMPY[dtype])))
    by_id = {id(weight): gradient.asnumpy() for weight, gradient in zip(weights, by_weight, strict=True)}
    return cases, probes, by_input.asnumpy(), by_id


def test_gradients_follow_finite_differences(mode):
    """The differences are those of the float64 formula, which the outputs follow: they carry hardly any rounding."""
    cases, probes, by_input, by_parameter = _gradients(mode, mstype.float32)
    exact = _X.astype(np.float64)
    total_by_input = np.zeros_like(exact)
    for (layer, cell, activation), probe in zip(cases, probes, strict=True):
        values = values_of(cell)
        constants = layer.detached(values)

        def scalar(layer=layer, values=values, constants=constants, activation=activation, probe=probe):
            return float((layer.formula(exact, values | constants, activation) * probe).sum())

        total_by_input += central_differences(scalar, exact)
        for name, parameter in cell.parameters_and_names():
            if not parameter.requires_grad:
                continue
            expected = central_differences(scalar, values[name])
            assert np.abs(expected).max() > 0, name
            np.testing.assert_allclose(by_parameter[id(parameter)], expected, rtol=1e-3, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(by_input, total_by_input, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", [pytest.param("graph", marks=REPETITION), "pynative"], indirect=True)
def test_gradients_in_float16_are_those_in_float32_to_two_percent(mode):
    """Relative to the largest entry of each gradient: float16 rounds each of the few products to one in 2,000."""
    by_dtype = []
    for dtype in (mstype.float32, mstype.float16):
        cases, _, by_input, by_parameter = _gradients(mode, dtype)
        by_dtype.append([by_input, *(by_parameter[id(p)] for _, cell, _ in cases for p in cell.trainable_params())])
    for wide, narrow in zip(*by_dtype, strict=True):
        assert np.abs(narrow.astype(np.float32) - wide).max() <= 0.02 * np.abs(wide).max()


@pytest.fixture(scope="module")
def pynative():
    """Run without compiling, for all examples of a test alike."""
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    yield
    mindspore.set_context(mode=before)


@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 4), max_size=4),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    rank=st.integers(1, 5),
    alpha=st.floats(-8, 8).filter(lambda alpha: abs(alpha) > 0.01),
    seed=st.integers(0, 99),
)
def test_any_shape_follows_the_formula(pynative, leading, inputs, outputs, rank, alpha, seed):
    x = random_input((*leading, inputs), seed=seed)
    exact = x.astype(np.float64)
    wide = {"compute_dtype": mstype.float32}
    lora = randomise(LoRADense(inputs, outputs, rank, alpha, **wide), seed)
    adapter = randomise(AdapterLayer(inputs, rank, **wide), seed)
    low_rank = randomise(LowRankAdapterLayer(inputs, min(rank, inputs), rank, **wide), seed)
    pairs = [
        (lora, _reference.lora_dense(exact, values_of(lora), alpha / rank)),
        (adapter, _reference.adapter(exact, values_of(adapter))),
        (low_rank, _reference.low_rank_adapter(exact, values_of(low_rank))),
    ]
    for cell, expected in pairs:
        output = cell(Tensor(x)).asnumpy()
        assert output.shape == expected.shape
        np.testing.assert_allclose(output, expected, rtol=2e-4, atol=2e-4)
