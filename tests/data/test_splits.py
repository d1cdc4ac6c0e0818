import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpet.data.splits import stratified_split

SHARES = (0.7, 0.1, 0.2)


@given(sizes=st.lists(st.integers(3, 60), min_size=2, max_size=8), seed=st.integers(0, 2**32 - 1), order=st.randoms())
def test_every_row_is_in_one_part_and_every_class_in_its_share(sizes, seed, order):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order.shuffle(labels)
    parts = stratified_split(labels, SHARES, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert set(labels[parts[0]]) == set(range(len(sizes)))
    for part, share in zip(parts[1:], SHARES[1:], strict=True):
        assert len(part) == max(1, round(share * len(labels)))
        for number, size in enumerate(sizes):
            # The row that training keeps of each class moves a small class's share; the spacing moves it by one.
            due = share * len(labels) * (size - 1) / (len(labels) - len(sizes))
            assert abs(np.sum(labels[part] == number) - due) < 2
    for part in parts:
        assert np.all(np.diff(part) > 0)


@given(seed=st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_parts(seed):
    labels = np.random.default_rng(0).integers(0, 4, 100)
    first, second = (stratified_split(labels, SHARES, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_another_seed_gives_other_parts_in_which_any_row_may_be():
    labels = np.repeat([0, 1], 20)
    tests = [set(stratified_split(labels, SHARES, seed)[2].tolist()) for seed in range(60)]
    assert len(set(map(frozenset, tests))) > 50
    assert set.union(*tests) == set(range(40))


def test_a_class_with_one_row_is_trained_on():
    labels = np.array([0] * 20 + [1] + [2] * 20)
    for seed in range(20):
        assert 20 in stratified_split(labels, SHARES, seed)[0]


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1], [0, 1, 2, 3, 3]])
def test_too_few_rows_are_refused(labels):
    with pytest.raises(
        ValueError, match=f"{len(labels)} examples of {len(set(labels))} labels are too few for 3 splits"
    ):
        stratified_split(np.array(labels), SHARES, 0)
