import math

import pytest

from mindpet.train.metrics import accuracy, macro_f1, perplexity, rouge


def test_accuracy_is_the_share_of_right_labels():
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 0.75


def test_macro_f1_counts_each_class_alike():
    # class 0: 3 right, 1 wrongly predicted, 1 missed; class 1 is missed, and class 2 predicted by mistake only
    assert macro_f1([0, 0, 0, 0, 2], [0, 0, 0, 1, 0]) == pytest.approx((6 / 8 + 0 + 0) / 3)
    assert macro_f1([0, 1], [0, 1]) == 1.0


@pytest.mark.parametrize(
    ("total", "targets", "expected"), [(0.0, 3, 1.0), (3 * math.log(7), 3, 7.0), (1e6, 1, math.inf)]
)
def test_perplexity_is_that_of_the_mean(total, targets, expected):
    assert perplexity(total, targets) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "expected", "scores"),
    [
        # 3 words of 4 and of 5 are shared; of the pairs (the cat), (cat sat), (sat on) one; in order: the cat ... on
        ("the cat sat on", "The cat lies on it.", (6 / 9, 2 * 1 / 7, 6 / 9)),
        ("on the cat", "the cat on", (1.0, 0.5, 4 / 6)),
        ("今天天气好", "今天气好", (8 / 9, 6 / 7, 8 / 9)),
        ("GPT模型", "gpt 模型。", (1.0, 1.0, 1.0)),
        ("été", "ete", (0.0, 0.0, 0.0)),
        ("", "x", (0.0, 0.0, 0.0)),
    ],
)
def test_rouge_is_what_a_hand_counts(written, expected, scores):
    found = rouge([written], [expected])
    assert list(found) == ["rouge1", "rouge2", "rougeL"]
    assert list(found.values()) == pytest.approx(scores)


def test_rouge_is_the_mean_over_the_texts():
    assert rouge(["a b", "c"], ["a b", "d"]) == pytest.approx({"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: accuracy([], []), "0 predictions and 0 labels"),
        (lambda: macro_f1([1], [1, 2]), "1 predictions and 2 labels"),
        (lambda: perplexity(1.0, 0), "perplexity got 0 targets"),
        (lambda: rouge(["a"], []), "1 texts and 0 to compare with"),
        (lambda: rouge([], []), "0 texts"),
    ],
)
def test_nothing_to_measure_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
