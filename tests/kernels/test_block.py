import re
from pathlib import Path

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindpet import kernels
from mindpet.kernels.switch import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason="no native kernels here")

if missing() is None:
    from mindpet.kernels import block as module
    from mindpet.kernels.block import NotABlockError, Recorder, block_operation
    from mindpet.kernels.native import constants

ROWS = (2, 3, 4)
NAMES = ("weight", "bias", "lora_a", "lora_b", "up", "gamma", "beta")
SHAPES = ((4, 4), (4,), (2, 4), (4, 2), (6, 4), (6,), (6,))


def _parameters(seed=0):
    generator = np.random.default_rng(seed)
    numbers = {name: generator.normal(0, 1, shape) for name, shape in zip(NAMES, SHAPES, strict=True)}
    numbers["scale"] = np.array(0.5)
    return {name: Parameter(Tensor(value.astype(np.float32)), name=name) for name, value in numbers.items()}


def _rows(seed=1):
    return Tensor(np.random.default_rng(seed).normal(0, 1, ROWS).astype(np.float32))


def _computed(by, x, p):
    """LoRA, a residual connection, GELU, a trained dense layer and LayerNorm."""
    y = by.lora_dense(x, p["weight"], p["bias"], p["lora_a"], p["lora_b"], p["scale"], trains_bias=True)
    y = by.gelu(y + x)
    return by.layer_norm(by.dense_trained(y, p["up"]), p["gamma"], p["beta"], 1e-5)


TRAINED = ("bias", "lora_a", "lora_b", "up", "gamma", "beta")


def _recorded(p):
    recorder = Recorder(0)
    operation = block_operation(recorder.finished(_computed(recorder, recorder.rows, p)))
    return operation, tuple(recorder.parameters)


class _AsBlock(nn.Cell):
    def __init__(self, p):
        super().__init__()
        operation, self.given = _recorded(p)
        self.compute, self.fingerprint = operation.compute, operation.fingerprint

    def construct(self, x):
        return self.compute(self.fingerprint, x, *self.given)[0]


class _AsOperations(nn.Cell):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def construct(self, x):
        return _computed(kernels, x, self.p)


class _Sum(nn.Cell):
    def __init__(self, cell, weights):
        super().__init__()
        self.cell, self.weights = cell, weights

    def construct(self, x):
        return (self.cell(x) * self.weights).sum()


@pytest.mark.usefixtures("mode")
def test_a_block_computes_what_its_operations_compute_forward_and_backward():
    p, x = _parameters(), _rows()
    weights = Tensor(np.random.default_rng(2).normal(0, 1, (2, 3, 6)).astype(np.float32))
    trained = [p[name] for name in TRAINED]
    results = []
    for cell in (_AsBlock(p), _AsOperations(p)):
        dx, gradients = mindspore.grad(_Sum(cell, weights), 0, trained)(x)
        results.append([cell(x), dx, *gradients])
    for name, found, expected in zip(["y", "dx", *TRAINED], *results, strict=True):
        scale = np.abs(expected.asnumpy()).max()
        np.testing.assert_allclose(found.asnumpy(), expected.asnumpy(), atol=1e-6 * scale, rtol=0, err_msg=name)


def test_equal_blocks_are_one_operation_and_others_are_not():
    first, _ = _recorded(_parameters(0))
    again, _ = _recorded(_parameters(1))
    assert again is first
    recorder = Recorder(0)
    other = block_operation(recorder.finished(recorder.gelu(recorder.rows)))
    assert other.number != first.number


def test_a_graph_that_means_another_block_fails():
    operation, given = _recorded(_parameters())
    with pytest.raises(RuntimeError):
        operation.compute(constants(float(operation.fingerprint.asnumpy()[0]) + 1), _rows(), *given)[0].asnumpy()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("weight", (5, 4)), ("weight", (4, 5)), ("bias", (5,)), ("lora_a", (2, 5)), ("lora_b", (4, 3)), ("gamma", (4,))],
)
def test_what_does_not_fit_is_refused(name, shape):
    p = _parameters()
    p[name] = Parameter(Tensor(np.zeros(shape, np.float32)), name=name)
    operation, given = _recorded(p)
    with pytest.raises((ValueError, RuntimeError), match="has the shape"):
        operation.compute(operation.fingerprint, _rows(), *given)


def test_codes_and_fields_are_those_of_the_library():
    header = (Path(module.__file__).parent / "cpp" / "block.hpp").read_text()
    codes = re.search(r"enum class Code \{(.*?)\}", header, re.DOTALL)[1]
    assert [name.strip() for name in codes.split(",")] == list(module._CODES)
    assert f"FIELDS = {module._FIELDS};" in header
    assert f"NONE = {module._NONE};" in header


def test_only_what_a_block_can_compute_is_recorded():
    p = _parameters()
    recorder = Recorder(1)
    x, (mask,) = recorder.rows, recorder.beside
    refused = [
        lambda: recorder.tanh(x),
        lambda: recorder.cross_entropy(x, x),
        lambda: recorder.attention(x, x, x, None, 2, dropout=nn.Dropout(p=0.1)),
        lambda: recorder.attention(x, x, x, p["bias"], 2),
        lambda: recorder.gelu(_rows()),
        lambda: recorder.gelu(Recorder(0).rows),
        lambda: recorder.gelu(mask),
        lambda: recorder.dense_frozen(x, _rows()),
        lambda: recorder.dense_frozen(x, Parameter(Tensor(np.zeros((4, 4), np.float16)))),
        lambda: recorder.lora_dense(x, p["weight"], None, p["lora_a"], p["lora_b"], 0.5),
        lambda: recorder.finished(x),
        lambda: x + _rows(),
    ]
    for record in refused:
        with pytest.raises(NotABlockError):
            record()
    for record in (lambda: x * 2, lambda: x[0], lambda: x.reshape(1)):
        with pytest.raises((TypeError, AttributeError)):
            record()


def test_a_block_returns_what_is_computed_last_and_reads_all_else():
    recorder = Recorder(0)
    early = recorder.gelu(recorder.rows)
    late = recorder.gelu(early)
    with pytest.raises(NotABlockError, match="last"):
        recorder.finished(early)
    assert recorder.finished(late)
    with pytest.raises(NotABlockError, match="reads all"):
        recorder.finished(recorder.gelu(early))


def test_a_process_has_so_many_blocks_and_no_more(monkeypatch):
    monkeypatch.setattr(module, "_numbers", {(float(number),): number for number in range(16)})
    recorder = Recorder(0)
    written = recorder.finished(recorder.layer_norm(recorder.rows, *list(_parameters().values())[-3:-1], 0.123))
    with pytest.raises(NotABlockError, match="as many"):
        block_operation(written)
