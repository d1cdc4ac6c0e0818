import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.utils.dropout import Dropout
from mindpet.utils.version_control import get_dropout


def _step(number=0):
    return Parameter(Tensor(number, mstype.int32), name="step", requires_grad=False)


def _masked(rate, step, seed=0, layer=0):
    cell = Dropout(rate).set_train()
    cell.use_mask(step, seed, layer)
    return cell


def _mix(number):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        number = (number ^ number >> shift) * factor % 2**32
    return number ^ number >> 16


def _expected(shape, rate, step, seed, layer):
    """Compute the mask with Python's integers."""
    golden = 0x9E3779B9
    key = _mix((_mix((_mix((seed + golden) % 2**32) + step) % 2**32) + layer * golden) % 2**32)
    other = _mix((key + golden) % 2**32)
    rows, columns = int(np.prod(shape[:-1], dtype=int)), shape[-1]
    row = [_mix((number * golden + key) % 2**32) | 1 for number in range(rows)]
    column = [_mix((number * golden + other) % 2**32) | 1 for number in range(columns)]
    kept = [[i * j % 2**32 >= round(rate * 2**32) for j in column] for i in row]
    return (np.array(kept, np.float32) * np.float32(1 / (1 - rate))).reshape(shape)


@pytest.mark.parametrize(
    ("shape", "rate", "step", "seed", "layer"),
    [
        ((7, 33), 0.1, 0, 0, 0),
        ((7, 33), 0.5, 1, 2**31 - 1, 23),
        ((2, 3, 5, 8), 0.9, 2**31 - 1, 1, 2**32 - 1),
        ((65,), 0.3, 10**6, 2**32 - 1, 1),
        ((4, 1), 0.25, 17, 42, 3),
    ],
)
def test_the_mask_is_this_function_of_seed_step_and_layer(mode, shape, rate, step, seed, layer):
    ones = Tensor(np.ones(shape), mstype.float32)
    found = _masked(rate, _step(step), seed, layer)(ones).asnumpy()
    np.testing.assert_array_equal(found, _expected(shape, rate, step, seed, layer))


def test_a_raised_step_is_seen_by_the_compiled_graph(mode):
    step = _step(3)
    cell = _masked(0.5, step)
    ones = Tensor(np.ones((8, 32)), mstype.float32)
    masks = []
    for number in (3, 4, 3):
        step.set_data(Tensor(number, mstype.int32))
        masks.append(cell(ones).asnumpy())
    np.testing.assert_array_equal(masks[0], masks[2])
    assert not np.array_equal(masks[0], masks[1])


class _Weighted(nn.Cell):
    def __init__(self, dropout):
        super().__init__()
        self.weight = Parameter(Tensor(np.full((4, 6), 3.0), mstype.float16), name="weight")
        self.dropout = dropout

    def construct(self, x):
        return self.dropout(self.weight * x).astype(mstype.float32).sum()


def test_gradient_and_output_carry_the_same_mask_and_no_dtype_changes(mode):
    net = _Weighted(_masked(0.5, _step())).set_train()
    x = Tensor(np.full((4, 6), 2.0), mstype.float16)
    gradient = ops.GradOperation(get_by_list=True)(net, [net.weight])(x)[0]
    mask = _expected((4, 6), 0.5, 0, 0, 0)
    assert gradient.dtype == mstype.float16
    np.testing.assert_array_equal(gradient.asnumpy(), 2 * mask)
    assert float(net(x).asnumpy()) == 6 * mask.sum()
    assert net.dropout(x).dtype == mstype.float16


def test_without_a_step_the_primitive_draws_and_out_of_training_nothing_is_dropped(mode):
    cell = get_dropout(0.5)
    assert isinstance(cell, nn.Dropout)
    assert isinstance(cell.dropout, ops.Dropout)
    ones = Tensor(np.ones((64, 64)), mstype.float32)
    assert set(np.unique(cell.set_train()(ones).asnumpy())) == {0, 2}
    np.testing.assert_array_equal(get_dropout(0.5)(ones).asnumpy(), 1)
    masked = _masked(0.5, _step())
    np.testing.assert_array_equal(masked.set_train(False)(ones).asnumpy(), 1)
    np.testing.assert_array_equal(get_dropout(0.0).set_train()(ones).asnumpy(), 1)


ROWS, COLUMNS = 512, 384


def _deviations(rate):
    """Return masks as numbers of mean 0 and variance 1: one, and those of the next step, layer and seed."""
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    step, ones = _step(), Tensor(np.ones((ROWS, COLUMNS)), mstype.float32)
    cell = _masked(rate, step)
    masks = [other(ones).asnumpy() for other in (cell, _masked(rate, step, layer=1), _masked(rate, step, seed=1))]
    step.set_data(Tensor(1, mstype.int32))
    masks.append(cell(ones).asnumpy())
    mindspore.set_context(mode=before)
    return [((mask == 0) - rate) / np.sqrt(rate * (1 - rate)) for mask in masks]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_masks_look_random(rate):
    masks = _deviations(rate)
    # Each figure is normal with variance 1 for a truly random mask; 5.5 is exceeded once in 26 million draws.
    for mask in masks:
        assert abs(mask.sum()) / np.sqrt(mask.size) < 5
        assert np.abs(mask.sum(axis=1)).max() / np.sqrt(COLUMNS) < 5.5
        assert np.abs(mask.sum(axis=0)).max() / np.sqrt(ROWS) < 5.5
    for other in masks[1:]:
        assert abs((masks[0] * other).sum()) / np.sqrt(other.size) < 5, "neighbours have nothing in common"
    for other in masks:
        for one, two in ((masks[0], other), (masks[0].T, other.T)):  # pairs of rows, then of columns
            pairs = one @ two.T / np.sqrt(one.shape[1])
            pairs = pairs[np.triu_indices(len(pairs), 1)]
            assert np.var(pairs) == pytest.approx(1, abs=0.03)
            assert np.abs(pairs).max() < 8
    # The product of row and column numbers ties the corners of a rectangle; what is kept of them must not show it.
    generator = np.random.default_rng(0)
    (top, bottom), (left, right) = (
        generator.integers(ROWS, size=(2, 10**5)),
        generator.integers(COLUMNS, size=(2, 10**5)),
    )
    corners = masks[0][top, left] * masks[0][top, right] * masks[0][bottom, left] * masks[0][bottom, right]
    corners = corners[(top != bottom) & (left != right)]
    assert abs(corners.sum()) / np.sqrt(corners.size) < 5.5
