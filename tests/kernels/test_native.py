"""The native kernels where they differ from the plain ones: how they are chosen, and what they refuse."""

import os
import subprocess
import sys

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from mindpet import kernels
from mindpet.kernels import switch
from mindpet.kernels.switch import missing, native_kind
from mindpet.utils.exceptions import InputError
from tests.kernels import formulas
from tests.kernels.test_kernels import (
    NATIVE,
    Call,
    Weighted,
    add_residual_and_normalise,
    grouped_attention,
    masked_causal_attention,
    padding,
    random,
    slopes,
)


@pytest.fixture(autouse=True)
def chosen():
    before = kernels.kernels_in_use()
    yield
    kernels.use_kernels(before)


BRAIN = pytest.mark.skipif(
    "bf16" not in kernels.possible_kernels(), reason="no native kernels with bfloat16 products here"
)
KINDS = ["off", pytest.param("f32", marks=NATIVE), pytest.param("bf16", marks=BRAIN)]


def float32(*arrays):
    return [Tensor(array.astype(np.float32)) for array in arrays]


def error(found, expected):
    """The largest error over the largest magnitude."""
    return np.abs(found.asnumpy() - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_lora_dense(mode, kind, has_bias):
    kernels.use_kernels(kind)
    x, weight, bias = random(2, 3, 40), random(30, 40), random(30)
    lora_a, lora_b, weights = random(4, 40), random(30, 4), random(2, 3, 30, seed=1)
    bias = bias if has_bias else None

    def branch(x, lora_a, lora_b, scale):
        return kernels.lora_dense(x, Tensor(weight.astype(np.float32)), shift, lora_a, lora_b, scale)

    shift = Tensor(bias.astype(np.float32)) if has_bias else None
    tensors = float32(x, lora_a, lora_b, np.array(0.5))
    limit = 1e-2 if kind == "bf16" else 1e-5

    def formula(x, lora_a, lora_b):
        return formulas.lora_dense(x, weight, bias if has_bias else 0.0, lora_a, lora_b, 0.5)

    assert error(Call(branch)(*tensors), formula(x, lora_a, lora_b)) <= limit
    gradients = mindspore.grad(Weighted(Call(branch), weights), grad_position=(0, 1, 2))(*tensors)
    for position, gradient in enumerate(gradients):
        expected = slopes(lambda *moved: (formula(*moved) * weights).sum(), [x, lora_a, lora_b], position, 1e-4)
        assert error(gradient, expected) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_dense_frozen_hands_nothing_to_its_weight_and_to_a_bias_only_if_it_is_trained(mode, kind):
    kernels.use_kernels(kind)

    class Layer(nn.Cell):
        def __init__(self):
            super().__init__()
            self.weight = Parameter(Tensor(random(4, 5).astype(np.float32)))
            self.frozen = Parameter(ops.ones(4))
            self.trained = Parameter(ops.ones(4))

        def construct(self, x):
            output = kernels.dense_frozen(x, self.weight, self.frozen)
            return (output + kernels.dense_frozen(x, self.weight, self.trained, True)).sum()

    layer = Layer()
    parameters = (layer.weight, layer.frozen, layer.trained)
    gradient, (by_weight, by_frozen, by_trained) = mindspore.grad(layer, 0, parameters)(*float32(random(2, 5)))
    expected = np.tile(2 * random(4, 5).sum(0), (2, 1))
    assert error(gradient, expected) <= (1e-2 if kind == "bf16" else 1e-5)
    assert not by_weight.asnumpy().any()
    assert not by_frozen.asnumpy().any()
    assert (by_trained.asnumpy() == 2).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trains_scale", [False, True])
def test_a_norm_hands_nothing_to_what_is_frozen(mode, kind, trains_scale):
    kernels.use_kernels(kind)

    def normalise(x, gamma, beta):
        whole = kernels.layer_norm(x, gamma, beta, 1e-5, None, trains_scale)
        return whole + kernels.layer_norm(x, gamma, beta, 1e-5, x, trains_scale) + rms(x, gamma)

    def rms(x, gamma):
        normalised, total = kernels.add_rms_norm(x, x, gamma, 1e-5, trains_scale)
        return kernels.rms_norm(x, gamma, 1e-5, trains_scale) + normalised + total

    inputs = float32(random(3, 7), random(7), random(7, seed=1))
    gradients = mindspore.grad(Weighted(Call(normalise), random(3, 7, seed=2)), (0, 1, 2))(*inputs)
    assert [bool(one.asnumpy().any()) for one in gradients] == [True, trains_scale, trains_scale]


ROUNDED = {
    "gelu": (kernels.gelu, [random(3, 7)], ()),
    "gelu_tanh": (kernels.gelu_tanh, [random(3, 7)], ()),
    "silu_gate": (kernels.silu_gate, [random(3, 7), random(3, 7, seed=1)], ()),
    "layer_norm": (kernels.layer_norm, [random(3, 21), random(21), random(21, seed=1)], (1e-5,)),
    "layer_norm, residual": (
        add_residual_and_normalise,
        [random(3, 21), random(21), random(21, seed=1), random(3, 21, seed=2)],
        (1e-5,),
    ),
    "attention": (grouped_attention, [random(2, 70, 20), random(2, 70, 10), random(2, 70, 10, seed=1)], (4, 2)),
    "attention, masked": (
        masked_causal_attention,
        [random(2, 5, 6), random(2, 9, 6), random(2, 9, 6, seed=1), padding(4, 9, length=9)],
        (2,),
    ),
}


ROUNDED_IN_BOTH_MODES = [
    pytest.param(name, mode, marks=pytest.mark.slow if mode == "graph" and name != "attention, masked" else [])
    for name in ROUNDED
    for mode in ("graph", "pynative")
]


@BRAIN
@pytest.mark.parametrize(("name", "mode"), ROUNDED_IN_BOTH_MODES, indirect=["mode"])
def test_what_bf16_keeps_for_gradients_is_rounded_and_results_are_not(mode, name):
    kernel, arrays, numbers = ROUNDED[name]
    results = {}
    for kind in ("f32", "bf16"):
        kernels.use_kernels(kind)
        call, tensors = Call(kernel, *numbers), float32(*arrays)
        output = call(*tensors).asnumpy()
        weighted = Weighted(call, random(*output.shape, seed=3))
        moved = tuple(range(min(len(arrays), 3)))
        results[kind] = [output, *(one.asnumpy() for one in mindspore.grad(weighted, moved)(*tensors))]
    output, *gradients = zip(*results.values(), strict=True)
    assert (output[0] == output[1]).all()
    assert all(np.abs(exact - rounded).max() <= 1e-2 * np.abs(exact).max() for exact, rounded in gradients)
    assert any((exact != rounded).any() for exact, rounded in gradients)


@BRAIN
def test_bf16_rounds_the_products_with_frozen_weights_only():
    x, weight = float32(random(64, 64), random(64, 64, seed=1))
    results = {}
    for kind in ("f32", "bf16"):
        kernels.use_kernels(kind)
        results[kind] = kernels.dense_frozen(x, weight).asnumpy(), kernels.gelu(x).asnumpy()
    assert np.abs(results["f32"][0] - results["bf16"][0]).max() > 1e-3
    assert (results["f32"][1] == results["bf16"][1]).all()


class Chosen(nn.Cell):
    """Tells which kernels its graph has: 0 for plain ones, 1 for native ones."""

    def construct(self, x):
        if native_kind(x.dtype) == "off":
            return x * 0
        return x * 0 + 1


@NATIVE
def test_the_choice_holds_for_what_is_computed_or_compiled_afterwards(mode):
    x = ops.ones(1)
    net = Chosen()
    for kind, expected in [("off", 0), ("f32", 1), ("off", 0)]:
        kernels.use_kernels(kind)
        assert kernels.kernels_in_use() == kind
        assert Chosen()(x).asnumpy() == expected
        assert net(x).asnumpy() == (0 if mode == "graph" else expected)
    kernels.use_kernels("f32")
    assert Chosen()(x.astype(mindspore.float16)).asnumpy() == 0


@NATIVE
def test_parallel_modes_and_other_devices_get_plain_kernels(mode, monkeypatch):
    kernels.use_kernels("f32")
    try:
        mindspore.set_auto_parallel_context(parallel_mode="data_parallel")
        assert kernels.kernels_in_use() == "off"
        assert "stand-alone" in kernels.describe_kernels()
        assert Chosen()(ops.ones(1)).asnumpy() == 0
    finally:
        mindspore.reset_auto_parallel_context()
    assert Chosen()(ops.ones(1)).asnumpy() == 1
    monkeypatch.setattr(mindspore, "get_context", lambda name: {"device_target": "Ascend"}[name])
    assert kernels.kernels_in_use() == "off"


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match=r"kind is 'fast'; accepted are off, f32, bf16: choose"):
        kernels.use_kernels("fast")


def test_a_kind_that_is_not_possible_here_is_refused_with_the_reason(monkeypatch):
    missing.cache_clear()
    monkeypatch.setattr(switch, "LIBRARY", switch.LIBRARY.with_name("nowhere.so"))
    try:
        with pytest.raises(InputError, match=r"'f32', but this installation has no native library: install"):
            kernels.use_kernels("f32")
        kernels.use_kernels("off")
        assert kernels.describe_kernels().startswith("plain (this installation has no native library")
    finally:
        missing.cache_clear()


@NATIVE
def test_a_white_list_that_leaves_the_library_out_is_respected(monkeypatch):
    missing.cache_clear()
    monkeypatch.setenv("MS_CUSTOM_AOT_WHITE_LIST", "/usr/lib")
    try:
        assert missing() == "MS_CUSTOM_AOT_WHITE_LIST allows only /usr/lib"
    finally:
        missing.cache_clear()


def run(variables, code="from mindpet import kernels; print(kernels.describe_kernels())"):
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_environment_chooses():
    assert run({"MINDPET_KERNELS": "off"}).stdout.startswith("plain (")
    refused = run({"MINDPET_KERNELS": "f16"})
    assert refused.returncode == 1
    assert "MINDPET_KERNELS is 'f16'; accepted are off, f32, bf16" in refused.stderr


@NATIVE
def test_threads_are_no_more_than_cores_and_omp_num_threads():
    assert "1 threads" in run({"OMP_NUM_THREADS": "1,2"}).stdout
    cores = len(os.sched_getaffinity(0))
    assert f"{cores} threads" in run({"OMP_NUM_THREADS": "1000"}).stdout


BAD_SHAPES = {
    "gamma": lambda: kernels.layer_norm(*float32(random(2, 4), random(3), random(4)), 1e-5),
    "residual": lambda: kernels.layer_norm(*float32(random(2, 4), random(4), random(4)), 1e-5, ops.ones((4, 2))),
    "gamma, of a sum": lambda: kernels.add_rms_norm(*float32(random(2, 4), random(2, 4), random(3)), 1e-5, False),
    "residual, of RMSNorm": lambda: kernels.add_rms_norm(*float32(random(2, 4), random(2, 3), random(4)), 1e-5),
    "weight": lambda: kernels.dense_frozen(*float32(random(2, 4), random(3, 5))),
    "bias": lambda: kernels.dense_frozen(*float32(random(2, 4), random(3, 4), random(4))),
    "lora_b": lambda: kernels.lora_dense(
        *float32(random(2, 4), random(3, 4), random(3), random(2, 4), random(3, 1), np.array(1.0))
    ),
    "mask": lambda: kernels.attention(*float32(*[random(4, 3, 4)] * 3, random(2, 1, 1, 3)), 2),
    "key": lambda: kernels.attention(*float32(random(4, 3, 4), random(4, 3, 6), random(4, 3, 6)), None, 2, None, 3),
    "labels": lambda: kernels.cross_entropy(*float32(random(2, 4)), Tensor(np.zeros(1, np.int32))),
    "cosine": lambda: kernels.rotary(*float32(random(2, 3, 4), random(1, 2, 1), random(1, 2, 1)), 2),
    "x": lambda: kernels.silu_gate(*float32(random(2, 4), random(2, 3))),
}


@NATIVE
@pytest.mark.parametrize("name", BAD_SHAPES)
def test_shapes_that_do_not_fit_are_refused_before_native_code_reads_them(name):
    kernels.use_kernels("f32")
    tensor = name.split(",")[0]
    with pytest.raises(RuntimeError, match=f"{tensor} has the shape .*; expected is .*: give tensors that fit"):
        BAD_SHAPES[name]()


@NATIVE
def test_a_label_that_is_no_class_is_an_error(mode, capfd):
    kernels.use_kernels("f32")
    with pytest.raises(RuntimeError, match="mindpet_cross_entropy"):
        Call(kernels.cross_entropy)(*float32(random(2, 3)), Tensor(np.array([0, 3], np.int32))).asnumpy()
    assert "label 3; accepted are 0 to 2 and -1" in capfd.readouterr().err


@NATIVE
def test_views_and_empty_tensors_are_read_right(mode):
    kernels.use_kernels("f32")

    def of_views(x):
        return kernels.gelu(x.transpose((1, 0))), kernels.gelu(x[:, 1:3]), kernels.gelu(x[:0])

    x = random(3, 5)
    turned, cut, empty = Call(of_views)(*float32(x))
    assert error(turned, formulas.gelu(x).T) < 1e-5
    assert error(cut, formulas.gelu(x)[:, 1:3]) < 1e-5
    assert empty.shape == (0, 5)


@NATIVE
def test_attention_with_dropout_is_plain_and_without_it_native(mode):
    """They differ in the last bits, which tells them apart."""

    class Keep(nn.Cell):
        def construct(self, x):
            return x

    tensors = float32(*(random(2, 33, 32, seed=seed) for seed in range(3)))
    results = {}
    for kind in ("off", "f32"):
        kernels.use_kernels(kind)
        for dropout in (None, Keep()):
            results[kind, dropout is None] = Call(kernels.attention, None, 4, dropout)(*tensors).asnumpy()
    assert (results["f32", False] == results["off", False]).all()
    assert (results["f32", True] != results["off", True]).any()


@NATIVE
def test_operations_with_and_without_an_optional_input_share_a_graph(mode):
    """MindSpore tells operations apart by their names, and would give both the gradient of one of them."""
    kernels.use_kernels("f32")
    weight, bias = float32(random(4, 4), random(4))
    lora_a, lora_b, scale = float32(random(2, 4), random(4, 2), np.array(0.5))
    mask = Tensor(np.zeros((2, 1, 1, 3), np.float32))

    def every_form(x):
        x = kernels.layer_norm(x, bias, bias, 1e-5) + kernels.layer_norm(x, bias, bias, 1e-5, x)
        x = kernels.dense_frozen(x, weight) + kernels.dense_frozen(x, weight, bias)
        x = kernels.lora_dense(x, weight, None, lora_a, lora_b, scale) + kernels.lora_dense(
            x, weight, bias, lora_a, lora_b, scale
        )
        return kernels.attention(x, x, x, None, 2) + kernels.attention(x, x, x, mask, 2)

    x, weights = float32(random(2, 3, 4)), random(2, 3, 4, seed=1)
    gradients = []
    for kind in ("off", "f32"):
        kernels.use_kernels(kind)
        gradients.append(mindspore.grad(Weighted(Call(every_form), weights))(*x).asnumpy())
    assert np.abs(gradients[0] - gradients[1]).max() < 1e-4 * np.abs(gradients[0]).max()


@NATIVE
def test_a_network_may_return_what_is_no_tensor(mode):
    """MindSpore then compiles a part of the graph when it runs, without the Python objects of its operations."""
    kernels.use_kernels("f32")

    def with_others(x):
        normalised = kernels.layer_norm(kernels.gelu(x), ops.ones((4,)), ops.zeros((4,)), 1e-5)
        return kernels.attention(normalised, normalised, normalised, None, 2), None, "text"

    x = random(2, 3, 4)
    normalised = formulas.layer_norm(formulas.gelu(x), 1.0, 0.0, 1e-5)
    output, nothing, text = Call(with_others)(*float32(x))
    assert (nothing, text) == (None, "text")
    assert error(output, formulas.attention(normalised, normalised, normalised, None, 2)) < 1e-5
