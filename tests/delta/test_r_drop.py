"""R-Drop against its float64 formula, and what it refuses."""

import mindspore
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta import RDropLoss, _reference, rdrop_repeat
from tests.delta.layers import random_input, randomise, values_of

CLASSES = 3
LABELS = np.array([0, 0, 2, 2, 1, 1], np.int32)


def _logits(dtype=np.float32, seed=0):
    return random_input((6, CLASSES), dtype, seed)


def _probabilities(dtype=np.float32):
    weights = np.repeat(np.abs(random_input((3, CLASSES), seed=5)), 2, 0)
    return (weights / weights.sum(-1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_loss_follows_its_formula(mode, dtype):
    logits = _logits(dtype)
    loss = RDropLoss()
    for labels, alpha in ((LABELS, 4), (LABELS[:, None], 2.5), (_probabilities(), 0), (_probabilities(np.float16), 3)):
        arguments = () if alpha == 4 else (alpha,)
        value = loss(Tensor(logits), Tensor(labels), *arguments)
        exact = labels if labels.dtype == np.int32 else labels.astype(np.float64)
        expected = _reference.r_drop_loss(logits.astype(np.float64), exact, alpha)
        assert value.shape == ()
        assert value.dtype == mstype.float32
        np.testing.assert_allclose(float(value.asnumpy()), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.integers(1, 5),
    classes=st.integers(1, 6),
    alpha=st.one_of(st.integers(-3, 9), st.floats(-3, 9)),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_any_size_follows_the_formula(pairs, classes, alpha, spread, seed):
    logits = (spread * random_input((2 * pairs, classes), seed=seed)).astype(np.float32)
    labels = np.repeat(np.random.default_rng(seed).integers(0, classes, pairs), 2).astype(np.int32)
    expected = _reference.r_drop_loss(logits.astype(np.float64), labels, alpha)
    value = float(RDropLoss()(Tensor(logits), Tensor(labels), alpha).asnumpy())
    ce_loss = _reference.r_drop_loss(logits.astype(np.float64), labels, 0)
    terms = abs(ce_loss) + abs(expected - ce_loss)  # a negative alpha lets them cancel, but not their roundings
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * (1 + terms))


def test_the_weight_of_the_divergence_does_not_depend_on_the_batch():
    logits, labels = _logits(), LABELS
    once = RDropLoss()(Tensor(logits), Tensor(labels)).asnumpy()
    thrice = RDropLoss()(Tensor(np.tile(logits, (3, 1))), Tensor(np.tile(labels, 3))).asnumpy()
    np.testing.assert_allclose(once, thrice, rtol=1e-6)


def test_equal_rows_leave_the_cross_entropy():
    logits = np.repeat(_logits()[:3], 2, 0)
    value = RDropLoss()(Tensor(logits), Tensor(LABELS), 100).asnumpy()
    np.testing.assert_allclose(value, nn.CrossEntropyLoss()(Tensor(logits), Tensor(LABELS)).asnumpy(), rtol=1e-5)


def test_rows_labelled_minus_100_are_left_out_of_the_cross_entropy():
    logits = np.repeat(_logits()[:3], 2, 0)
    labels = np.array([0, 0, -100, -100, 1, 1], np.int32)
    value = RDropLoss()(Tensor(logits), Tensor(labels), 0).asnumpy()
    np.testing.assert_allclose(value, nn.CrossEntropyLoss()(Tensor(logits), Tensor(labels)).asnumpy(), rtol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, _probabilities()], ids=["indices", "probabilities"])
def test_the_gradient_follows_finite_differences(mode, labels):
    logits = _logits()
    gradient = mindspore.grad(RDropLoss())(Tensor(logits), Tensor(labels)).asnumpy()
    exact, step = logits.astype(np.float64), 1e-6
    for index in np.ndindex(exact.shape):
        shift = np.zeros_like(exact)
        shift[index] = step
        above, below = (_reference.r_drop_loss(exact + sign * shift, labels) for sign in (1, -1))
        np.testing.assert_allclose(gradient[index], (above - below) / (2 * step), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("alpha", ["4", None, True, [4], Tensor(4.0)], ids=repr)
def test_alpha_must_be_an_int_or_a_float(mode, alpha):
    with pytest.raises(TypeError, match="alpha"):
        RDropLoss()(Tensor(_logits()), Tensor(LABELS), alpha)


_WRONG = {
    "alpha is NaN": (ValueError, _logits(), LABELS, float("nan")),
    "alpha is infinite": (ValueError, _logits(), LABELS, float("inf")),
    "integer logits": (TypeError, _logits(np.int32), LABELS, 4),
    "int64 indices": (TypeError, _logits(), LABELS.astype(np.int64), 4),
    "bool labels": (TypeError, _logits(), _probabilities() > 0.5, 4),
    "float64 probabilities": (TypeError, _logits(), _probabilities(np.float64), 4),
    "an odd number of rows": (ValueError, _logits()[:5], LABELS[:5], 4),
    "one axis": (ValueError, _logits()[0], LABELS, 4),
    "three axes": (ValueError, _logits()[:, None], LABELS, 4),
    "too few indices": (ValueError, _logits(), LABELS[:4], 4),
    "probabilities of another shape": (ValueError, _logits(), _probabilities()[:, :2], 4),
    "probabilities of one example": (ValueError, _logits(), _probabilities()[:2], 4),
}


@pytest.mark.parametrize("name", _WRONG)
def test_what_does_not_fit_is_refused(mode, name):
    error, logits, labels, alpha = _WRONG[name]
    with pytest.raises(error, match="accepted is"):
        RDropLoss()(Tensor(logits), Tensor(labels), alpha)


def test_an_index_beyond_the_classes_is_refused():
    # In graph mode: in PyNative mode MindSpore's operations that are under way when one fails can end the process.
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    with pytest.raises((RuntimeError, ValueError)):
        RDropLoss()(Tensor(_logits()), Tensor(np.full(6, CLASSES, np.int32))).asnumpy()


class Repeated(nn.Cell):
    def construct(self, *items):
        return rdrop_repeat(*items)


def test_each_row_is_repeated_next_to_itself(mode):
    items = [
        np.arange(3, dtype=np.int32),
        np.array([[True], [False], [True]]),
        _logits(np.float16)[:3],
        random_input((3, 2, 4)),
    ]
    output = Repeated()(*map(Tensor, items))
    assert isinstance(output, tuple)
    for item, repeated in zip(items, output, strict=True):
        assert repeated.asnumpy().dtype == item.dtype
        assert np.array_equal(repeated.asnumpy(), np.repeat(item, 2, 0))


def test_what_cannot_be_repeated_is_refused():
    assert rdrop_repeat() == ()
    for item in (1, np.zeros(3), None, [1]):
        with pytest.raises(TypeError, match="Tensor"):
            rdrop_repeat(item)
    with pytest.raises(ValueError, match="scalar"):
        rdrop_repeat(Tensor(1.0))


class Classifier(nn.Cell):
    """The use that the specification shows."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, CLASSES)
        self.dropout = nn.Dropout(p=0.1)
        self.loss = RDropLoss()

    def construct(self, x, label_ids):
        x, label_ids = rdrop_repeat(x, label_ids)
        return self.loss(self.dense(self.dropout(x)), label_ids, alpha=4)


def test_a_classifier_learns_by_it(mode):
    network = randomise(Classifier(), spread=0.1)
    x = random_input((8, 4))
    labels = x[:, :CLASSES].argmax(-1).astype(np.int32)

    def loss_without_dropout():
        logits = _reference.dense(x, values_of(network.dense))
        return _reference.r_drop_loss(np.repeat(logits, 2, 0), np.repeat(labels, 2))

    before = loss_without_dropout()
    step = nn.TrainOneStepCell(network, nn.SGD(network.trainable_params(), 0.5)).set_train()
    for _ in range(15):
        step(Tensor(x), Tensor(labels))
    assert loss_without_dropout() < 0.8 * before
