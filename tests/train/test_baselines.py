import numpy as np
import pytest

from mindpet.data.dataset import ClassificationData, Split
from mindpet.train.baselines import probe_accuracy, tfidf_accuracy


def _data(texts):
    split = Split(tuple(texts * 10), np.arange(10 * len(texts), dtype=np.int32) % len(texts))
    return ClassificationData("task", ("x", "y"), split, split, split)


@pytest.mark.parametrize(
    "texts",
    [["good day", "bad day"], ["! ?", "? ! !"], ["a b", "c d"], ["好 天", "坏 天"], ["好天气", "坏天气"], ["1", "2"]],
)
def test_tfidf_tells_texts_of_any_script_apart(texts):
    assert tfidf_accuracy(_data(texts)) == 1.0


def test_the_probe_tells_features_apart_that_a_line_separates():
    data = _data(["a", "b"])
    features = np.where(data.train.labels[:, None] == 0, [[1.0, 5.0]], [[-1.0, 5.0]]).astype(np.float32)
    assert probe_accuracy(data, features, features, features) == 1.0
