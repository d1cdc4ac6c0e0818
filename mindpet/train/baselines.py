"""Two baselines that a fine-tuned network has to beat, fitted on the same split."""

from __future__ import annotations

from typing import Any

import numpy as np

from mindpet.data.dataset import ClassificationData

__all__ = ["probe_accuracy", "tfidf_accuracy"]

_INVERSE_REGULARISATIONS = (0.01, 0.1, 1.0, 10.0, 100.0)


def tfidf_accuracy(data: ClassificationData) -> float:
    """Return the test accuracy of a logistic regression on TF-IDF of words.

    Where most texts do not fall into words of two letters or more, as Chinese, single characters and pairs of them are
    counted instead.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words, characters = TfidfVectorizer(), TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
    split_words = words.build_analyzer()
    worded = np.mean([len(split_words(text)) > 1 for text in data.train.texts]) > 0.5
    vectorizer = words if worded else characters
    train = vectorizer.fit_transform(data.train.texts)
    return _regression_accuracy(
        data, train, vectorizer.transform(data.valid.texts), vectorizer.transform(data.test.texts)
    )


def probe_accuracy(data: ClassificationData, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> float:
    """Return the test accuracy of a logistic regression on a frozen encoder's features, (texts, hidden) a split."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return _regression_accuracy(data, scaler.transform(train), scaler.transform(valid), scaler.transform(test))


def _regression_accuracy(data: ClassificationData, train: Any, valid: Any, test: Any) -> float:
    """Return the test accuracy of the logistic regression whose strength does best on the validation split."""
    from sklearn.linear_model import LogisticRegression

    fits = [
        LogisticRegression(C=strength, max_iter=1000).fit(train, data.train.labels)
        for strength in _INVERSE_REGULARISATIONS
    ]
    best = max(fits, key=lambda fit: fit.score(valid, data.valid.labels))
    return float(best.score(test, data.test.labels))
