"""Each kernel, plain and native, its value and its gradients, against the NumPy formula in float64."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.kernels.switch import missing
from tests.kernels import formulas

NATIVE = pytest.mark.skipif(missing() is not None, reason=f"no native kernels: {missing()}")


@pytest.fixture(params=["off", pytest.param("f32", marks=NATIVE)])
def kind(request):
    """Test the plain kernels and, where there are any, the native ones."""
    before = kernels.kernels_in_use()
    kernels.use_kernels(request.param)
    yield request.param
    kernels.use_kernels(before)


# Beyond the ordinary range: where functions saturate and where float16 would overflow if squared carelessly.
WIDE = np.array([[-30.0, -6.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 2.0, 3.0, 6.0, 30.0]])


class Call(nn.Cell):
    """A kernel called inside `construct`, with its plain numbers fixed."""

    def __init__(self, kernel, *numbers):
        super().__init__()
        self.kernel = kernel
        self.numbers = numbers

    def construct(self, *tensors):
        return self.kernel(*tensors, *self.numbers)


class Weighted(nn.Cell):
    """A scalar that every entry of the kernel's result takes part in."""

    def __init__(self, call, weights):
        super().__init__()
        self.call = call
        self.weights = Tensor(weights.astype(np.float32))

    def construct(self, *tensors):
        return (self.call(*tensors).astype(mindspore.float32) * self.weights).sum()


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def padding(*visible, length):
    """(batch, 1, 1, length): row i sees its first visible[i] keys."""
    hidden = np.arange(length) >= np.array(visible)[:, None]
    return np.where(hidden, -1e4, 0.0)[:, None, None]


def causal(length):
    return np.where(np.triu(np.ones((length, length)), 1) > 0, -1e4, 0.0)[None, None]


def add_residual_and_normalise(x, gamma, beta, residual, epsilon):
    return kernels.layer_norm(x, gamma, beta, epsilon, residual)


def add_residual_and_normalise_formula(x, gamma, beta, residual, epsilon):
    return formulas.layer_norm(x, gamma, beta, epsilon, residual)


def frozen_layer_norm(x, gamma, beta, epsilon):
    return kernels.layer_norm(x, gamma, beta, epsilon, None, False)


def add_residual_and_normalise_frozen(x, residual, gamma, beta, epsilon):
    return kernels.layer_norm(x, gamma, beta, epsilon, residual, False)


def add_residual_and_normalise_frozen_formula(x, residual, gamma, beta, epsilon):
    return formulas.layer_norm(x, gamma, beta, epsilon, residual)


def frozen_rms_norm(x, gamma, epsilon):
    return kernels.rms_norm(x, gamma, epsilon, False)


def add_and_normalise(x, residual, gamma, epsilon, trains_scale=True):
    return ops.concat(kernels.add_rms_norm(x, residual, gamma, epsilon, trains_scale), -1)


def add_and_normalise_frozen(x, residual, gamma, epsilon):
    return add_and_normalise(x, residual, gamma, epsilon, False)


def add_and_normalise_formula(x, residual, gamma, epsilon):
    return np.concatenate(formulas.add_rms_norm(x, residual, gamma, epsilon), -1)


def only_normalised(x, residual, gamma, epsilon):
    return kernels.add_rms_norm(x, residual, gamma, epsilon)[0]


def only_normalised_formula(x, residual, gamma, epsilon):
    return formulas.add_rms_norm(x, residual, gamma, epsilon)[0]


def rotary(x, angles, num_heads, interleaved):
    return kernels.rotary(x, ops.cos(angles), ops.sin(angles), num_heads, interleaved)


def grouped_attention(query, key, value, num_heads, num_key_heads):
    return kernels.attention(query, key, value, None, num_heads, None, num_key_heads, True)


def grouped_attention_formula(query, key, value, num_heads, num_key_heads):
    return formulas.attention(query, key, value, None, num_heads, num_key_heads, True)


def masked_causal_attention(query, key, value, mask, num_heads):
    return kernels.attention(query, key, value, mask, num_heads, None, None, True)


def masked_causal_attention_formula(query, key, value, mask, num_heads):
    return formulas.attention(query, key, value, mask, num_heads, None, True)


CASES = {
    "gelu": (kernels.gelu, formulas.gelu, [random(3, 7)], ()),
    "gelu, wide": (kernels.gelu, formulas.gelu, [WIDE], ()),
    "gelu_tanh": (kernels.gelu_tanh, formulas.gelu_tanh, [random(3, 7)], ()),
    "gelu_tanh, wide": (kernels.gelu_tanh, formulas.gelu_tanh, [WIDE], ()),
    "tanh": (kernels.tanh, np.tanh, [random(3, 7)], ()),
    "tanh, wide": (kernels.tanh, np.tanh, [WIDE], ()),
    "layer_norm": (
        kernels.layer_norm,
        formulas.layer_norm,
        [random(2, 3, 8), 1 + 0.1 * random(8), random(8, seed=1)],
        (1e-12,),
    ),
    "layer_norm, epsilon": (
        kernels.layer_norm,
        formulas.layer_norm,
        [0.1 * random(4, 5), random(5), random(5, seed=1)],
        (0.01,),
    ),
    "layer_norm, far from 0": (
        kernels.layer_norm,
        formulas.layer_norm,
        [50 + 8 * random(2, 6), random(6), random(6, seed=1)],
        (1e-12,),
    ),
    "layer_norm, residual": (
        add_residual_and_normalise,
        add_residual_and_normalise_formula,
        [random(2, 3, 8), random(8), random(8, seed=1), random(2, 3, 8, seed=2)],
        (1e-5,),
    ),
    "frozen norm": (
        frozen_layer_norm,
        formulas.layer_norm,
        [random(2, 3, 8), random(8), random(8, seed=1)],
        (1e-5,),
    ),
    "frozen norm of a sum": (
        add_residual_and_normalise_frozen,
        add_residual_and_normalise_frozen_formula,
        [random(2, 3, 8), random(2, 3, 8, seed=2), random(8), random(8, seed=1)],
        (1e-5,),
    ),
    "frozen norm, rms": (frozen_rms_norm, formulas.rms_norm, [random(2, 3, 9), random(9)], (1e-5,)),
    "rms_norm": (kernels.rms_norm, formulas.rms_norm, [random(2, 3, 9), random(9)], (1e-5,)),
    "add_rms_norm": (
        add_and_normalise,
        add_and_normalise_formula,
        [random(2, 3, 9), random(2, 3, 9, seed=1), random(9)],
        (1e-5,),
    ),
    "add_rms_norm, the sum unused": (
        only_normalised,
        only_normalised_formula,
        [random(2, 9), random(2, 9, seed=1), random(9)],
        (1e-5,),
    ),
    "frozen norm of a sum, rms": (
        add_and_normalise_frozen,
        add_and_normalise_formula,
        [random(2, 3, 9), random(2, 3, 9, seed=1), random(9)],
        (1e-5,),
    ),
    "silu_gate": (kernels.silu_gate, formulas.silu_gate, [3 * random(3, 7), random(3, 7, seed=1)], ()),
    "rotary, halves": (rotary, formulas.rotary, [random(2, 3, 12), random(1, 3, 3)], (2, False)),
    "rotary, interleaved part": (rotary, formulas.rotary, [random(2, 3, 12), random(2, 3, 2)], (2, True)),
    "dense": (kernels.dense, formulas.dense, [random(2, 3, 5), random(4, 5), random(4)], ()),
    "dense, one row, no bias": (kernels.dense, formulas.dense, [random(1, 5), random(4, 5)], ()),
    "dense_frozen": (kernels.dense_frozen, formulas.dense, [random(2, 3, 5), random(4, 5), random(4)], ()),
    "dense_frozen, no bias": (kernels.dense_frozen, formulas.dense, [random(3, 5), random(4, 5)], ()),
    "attention": (
        kernels.attention,
        formulas.attention,
        [*(random(2, 4, 6, seed=seed) for seed in range(3)), padding(4, 2, length=4)],
        (3,),
    ),
    "attention, more keys than queries": (
        kernels.attention,
        formulas.attention,
        [random(2, 2, 6), random(2, 5, 6), random(2, 5, 6, seed=1), padding(3, 5, length=5)],
        (2,),
    ),
    "attention, causal, one head": (
        kernels.attention,
        formulas.attention,
        [*(random(1, 3, 4, seed=seed) for seed in range(3)), causal(3)],
        (1,),
    ),
    "attention, one position": (
        kernels.attention,
        formulas.attention,
        [*(random(1, 1, 4, seed=seed) for seed in range(3)), padding(1, length=1)],
        (2,),
    ),
}
CASES |= {
    "attention, causal and masked": (
        masked_causal_attention,
        masked_causal_attention_formula,
        [*(random(2, 4, 6, seed=seed) for seed in range(3)), padding(4, 2, length=4)],
        (3,),
    ),
    "attention, causal, grouped heads, more keys": (
        grouped_attention,
        grouped_attention_formula,
        [random(2, 3, 8), random(2, 5, 4), random(2, 5, 4, seed=1)],
        (4, 2),
    ),
}
# How many of a case's leading tensors are differentiated: masks, angles and frozen weights are none of them.
DIFFERENTIATED = {"attention": 3, "rotary": 1, "dense_frozen": 1, "frozen norm": 1, "frozen norm of a sum": 2}


def tensors(arrays, dtype=np.float32):
    """Arrays with as many axes as the first one in `dtype`; the others, vectors and masks, stay float32."""
    return [Tensor(a.astype(dtype if a.ndim == arrays[0].ndim > 1 else np.float32)) for a in arrays]


def slopes(function, arrays, position, step=1e-6):
    """The gradient of a scalar function with respect to one array, by central differences."""
    gradient = np.empty_like(arrays[position])
    for index in np.ndindex(gradient.shape):
        moved = [array.copy() for array in arrays]
        moved[position][index] += step
        above = function(*moved)
        moved[position][index] -= 2 * step
        gradient[index] = (above - function(*moved)) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", CASES)
def test_value(mode, kind, name):
    check_value(name, np.float32, 5e-6)


@pytest.mark.parametrize("name", CASES)
def test_value_in_float16(mode, name):
    check_value(name, np.float16, 4e-3)


def check_value(name, dtype, tolerance):
    kernel, formula, arrays, numbers = CASES[name]
    result = Call(kernel, *numbers)(*tensors(arrays, dtype))
    rounded = [tensor.asnumpy().astype(np.float64) for tensor in tensors(arrays, dtype)]
    expected = formula(*rounded, *numbers)
    assert result.dtype == mindspore.Tensor(np.zeros(1, dtype)).dtype
    assert result.shape == expected.shape
    np.testing.assert_allclose(result.asnumpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_gradients(mode, kind, name):
    kernel, formula, arrays, numbers = CASES[name]
    weights = random(*formula(*arrays, *numbers).shape, seed=9)
    count = DIFFERENTIATED.get(name.split(",")[0], len(arrays))
    net = Weighted(Call(kernel, *numbers), weights)
    gradients = mindspore.grad(net, grad_position=tuple(range(count)))(*tensors(arrays))
    if count == 1:
        gradients = (gradients,)

    def scalar(*moved):
        return (formula(*moved, *numbers) * weights).sum()

    for position in range(count):
        expected = slopes(scalar, arrays, position)
        error = np.abs(gradients[position].asnumpy() - expected).max()
        assert error <= 1e-5 * max(np.abs(expected).max(), 0.1)


LABELS = {"all count": [0, 4, 2], "some ignored": [-1, 3, 0], "one counts": [-1, -1, 1], "none counts": [-1, -1, -1]}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_cross_entropy(mode, kind, labels, spread):
    logits = random(3, 5) * spread
    loss, gradient = mindspore.value_and_grad(Call(kernels.cross_entropy))(
        Tensor(logits.astype(np.float32)), Tensor(np.array(labels, np.int32))
    )
    expected = slopes(lambda moved: formulas.cross_entropy(moved, labels), [logits], 0)
    assert loss.dtype == mindspore.float32
    assert loss.shape == ()
    np.testing.assert_allclose(loss.asnumpy(), formulas.cross_entropy(logits, labels), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient.asnumpy(), expected, atol=2e-5)


def test_cross_entropy_takes_the_mean_over_all_leading_axes_and_widens_float16(mode):
    logits = random(2, 3, 5).astype(np.float16)
    labels = np.array([[0, -1, 2], [4, 1, -1]], np.int64)
    loss = Call(kernels.cross_entropy)(Tensor(logits), Tensor(labels))
    expected = formulas.cross_entropy(logits.reshape(6, 5).astype(np.float64), labels.reshape(6))
    assert loss.dtype == mindspore.float32
    np.testing.assert_allclose(loss.asnumpy(), expected, rtol=1e-5)


def test_attention_applies_dropout_to_the_probabilities(mode):
    class Halve(nn.Cell):
        def construct(self, x):
            return x * 0.5

    arrays = [random(1, 3, 4, seed=seed) for seed in range(3)] + [padding(2, length=3)]
    plain = Call(kernels.attention, 2)(*tensors(arrays))
    halved = Call(kernels.attention, 2, Halve())(*tensors(arrays))
    np.testing.assert_allclose(halved.asnumpy(), 0.5 * plain.asnumpy(), rtol=1e-6)


def test_attention_gives_a_hidden_key_no_weight_in_float16(mode):
    query, key, value = (random(1, 2, 4, seed=seed) for seed in range(3))
    value[:, 1] = 1e4
    output = Call(kernels.attention, 2)(*tensors([query, key, value, padding(1, length=2)], np.float16))
    np.testing.assert_allclose(output.asnumpy(), np.repeat(value[:, :1], 2, axis=1), rtol=1e-2)


def test_dense_follows_the_dtype_of_its_input_and_leaves_the_weight_alone(mode):
    weight = mindspore.Parameter(Tensor(random(4, 5).astype(np.float32)), name="weight")
    output = Call(kernels.dense)(Tensor(random(2, 5).astype(np.float16)), weight)
    assert output.dtype == mindspore.float16
    assert weight.dtype == mindspore.float32


def test_kernels_compose_inside_one_graph(mode, kind):
    """As in a network: several kernels in one `construct`, one of them chosen by an attribute."""

    class Block(nn.Cell):
        def __init__(self):
            super().__init__()
            self.activate = kernels.gelu
            self.weight = Tensor(random(6, 6).astype(np.float32))

        def construct(self, x):
            widened = self.activate(kernels.dense(x, self.weight))
            return kernels.layer_norm(widened + x, ops.ones((6,)), ops.zeros((6,)), 1e-5)

    x = random(2, 3, 6)
    widened = formulas.gelu(formulas.dense(x, random(6, 6)))
    expected = formulas.layer_norm(widened + x, 1.0, 0.0, 1e-5)
    np.testing.assert_allclose(Block()(Tensor(x.astype(np.float32))).asnumpy(), expected, atol=2e-5)
