import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindpet.data.batches import Batches, length_buckets


def make(lengths, batch_size=4, seed=0, widths=None):
    """Batches of texts whose first token is 1000 + the text's number and whose label is that number modulo 3."""
    encoded = [np.arange(length, dtype=np.int32) + 1000 + place for place, length in enumerate(lengths)]
    labels = np.arange(len(lengths)) % 3
    widths = widths or length_buckets(lengths, max(lengths), batch_size)
    return Batches(encoded, labels, batch_size, widths, pad_id=7, seed=seed), encoded, labels


lengths_of_texts = st.lists(st.integers(1, 40), min_size=1, max_size=80)


@given(
    lengths=lengths_of_texts, batch_size=st.integers(1, 9), seed=st.integers(0, 2**32 - 1), number=st.integers(0, 99)
)
def test_an_epoch_has_every_text_exactly_once_and_whole(lengths, batch_size, seed, number):
    batches, encoded, labels = make(lengths, batch_size, seed)
    seen, shapes = [], set()
    for batch in batches.epoch(number):
        shapes.add(batch.input_ids.shape)
        for ids, mask, kinds, label, index in zip(*batch, strict=True):
            assert mask.any() and not kinds.any()
            np.testing.assert_array_equal(ids[mask == 0], 7)
            if index < 0:
                assert label == -1
                continue
            seen.append(index)
            assert label == labels[index]
            np.testing.assert_array_equal(ids[: mask.sum()], encoded[index])
    assert sorted(seen) == list(range(len(lengths)))
    assert shapes == set(batches.shapes)
    assert all(rows == batch_size for rows, _ in shapes)


@given(lengths=lengths_of_texts, seed=st.integers(0, 2**32 - 1), number=st.integers(0, 99))
def test_an_epoch_can_be_entered_at_any_step_after_a_restart(lengths, seed, number):
    whole = list(make(lengths, seed=seed)[0].epoch(number))
    restarted = make(lengths, seed=seed)[0]
    assert len(whole) == restarted.steps_per_epoch
    for start in range(len(whole) + 1):
        rest = list(restarted.epoch(number, start))
        assert len(rest) == len(whole) - start
        for first, second in zip(whole[start:], rest, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_epochs_and_seeds_differ_within_the_buckets_and_across_them():
    lengths = [5] * 40 + [30] * 40
    orders = [
        tuple(tuple(batch.indices) for batch in make(lengths, seed=seed)[0].epoch(number))
        for seed, number in itertools.product(range(3), range(3))
    ]
    assert len(set(orders)) == 9
    widths = [tuple(indices[0] >= 40 for indices in order) for order in orders]
    assert len(set(widths)) == 9


def test_the_types_and_shapes_are_those_of_a_step():
    batch = next(make([3, 5, 5], batch_size=4)[0].epoch(0))
    assert {name: (values.dtype.name, values.shape) for name, values in batch._asdict().items()} == {
        "input_ids": ("int32", (4, 5)),
        "attention_mask": ("int32", (4, 5)),
        "token_type_ids": ("int32", (4, 5)),
        "labels": ("int32", (4,)),
        "indices": ("int64", (4,)),
    }


@given(lengths=lengths_of_texts, batch_size=st.integers(1, 9))
def test_outputs_go_back_to_the_order_of_the_input(lengths, batch_size):
    batches, encoded, _ = make(lengths, batch_size)
    outputs = [batch.input_ids[:, :1] * 2.0 for batch in batches.ordered()]
    found = batches.to_input_order(outputs)
    np.testing.assert_array_equal(found, [[2 * tokens[0]] for tokens in encoded])
    with pytest.raises(ValueError, match="one for each batch"):
        batches.to_input_order([*outputs, outputs[0]])


@given(lengths=lengths_of_texts, batch_size=st.integers(1, 9))
def test_the_padding_share_is_what_the_batches_hold(lengths, batch_size):
    batches, _, _ = make(lengths, batch_size)
    positions = tokens = 0
    for batch in batches.epoch(0):
        positions += batch.input_ids.size
        tokens += batch.attention_mask[batch.indices >= 0].sum()
    assert batches.padding_share == pytest.approx(1 - tokens / positions)


@pytest.mark.parametrize(
    ("lengths", "batch_size", "expected"),
    [
        ([5] * 100, 8, (5,)),  # equal lengths
        ([5] * 10 + [6] * 90, 8, (6,)),  # nearly equal ones
        ([3, 40], 8, (40,)),  # few texts: a second batch would be fillers
        ([5] * 80 + [50] * 80, 8, (5, 50)),
        ([5] * 80 + [50] * 80 + [200] * 80, 8, (5, 50, 100)),  # 200 is cut to 100
        ([10] * 80 + [200] * 8, 8, (10, 100)),
    ],
)
def test_a_width_is_taken_only_where_it_pays(lengths, batch_size, expected):
    assert length_buckets(lengths, 100, batch_size) == expected


@given(lengths=lengths_of_texts, batch_size=st.integers(1, 9), count=st.integers(1, 4))
def test_no_other_choice_of_as_many_widths_pads_less(lengths, batch_size, count):
    widths = length_buckets(lengths, 40, batch_size, count)
    assert len(widths) <= count and widths[-1] == max(lengths) and list(widths) == sorted(set(widths))
    shorter = sorted(set(lengths))[:-1]
    positions = min(
        positions_of(lengths, (*chosen, max(lengths)), batch_size)
        for chosen in itertools.combinations(shorter[:12], len(widths) - 1)
    )
    assert positions_of(lengths, widths, batch_size) <= positions


def test_widths_of_long_texts_are_found_among_few():
    lengths = np.random.default_rng(0).integers(1, 9000, size=20_000)
    widths = length_buckets(lengths, 8190, 8)
    assert len(widths) == 3 and widths[-1] == 8190
    assert all(width % 16 == 0 for width in widths[:-1])
    assert positions_of(np.minimum(lengths, 8190), widths, 8) < 1.34 * np.minimum(lengths, 8190).sum()


def positions_of(lengths, widths, batch_size):
    rows = np.bincount(np.searchsorted(widths, lengths), minlength=len(widths))
    return int(np.sum(np.ceil(rows / batch_size) * batch_size * np.array(widths)))


def test_a_width_without_texts_makes_no_batch():
    batches, _, _ = make([3, 3], batch_size=2, widths=(3, 20))
    assert batches.shapes == ((2, 3),)
    assert batches.steps_per_epoch == 1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: length_buckets([], 8, 4), "give at least one text"),
        (lambda: Batches([], np.array([]), 4, (8,), 0), "Batches got no texts"),
        (lambda: Batches([np.arange(3)], np.array([0, 1]), 4, (8,), 0), "1 texts and 2 labels"),
        (lambda: Batches([np.arange(9)], np.array([0]), 4, (8,), 0), "a text of 9 tokens; the widest batch has 8"),
        (lambda: make([3] * 8)[0].epoch(0, 3), "start=3; expected 0 to 2"),
        (lambda: make([3] * 8)[0].epoch(0, -1), "start=-1; expected 0 to 2"),
    ],
)
def test_bad_arguments_are_refused_at_once(act, message):
    with pytest.raises(ValueError, match=message):
        act()
