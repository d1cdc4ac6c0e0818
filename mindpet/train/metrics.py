"""What evaluation reports: accuracy, macro-F1, perplexity and ROUGE."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import f1_score

__all__ = ["accuracy", "macro_f1", "perplexity", "rouge"]

_ROUGE = ("rouge1", "rouge2", "rougeL")
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(f"[{_CHINESE}]|[^\\W_{_CHINESE}]+")


def accuracy(predicted: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Return the share of `predicted` that equals `labels`, from 0 to 1.

    Raises:
        ValueError: There are no labels, or not as many as predictions.
    """
    predicted, labels = _paired(predicted, labels)
    return float(np.mean(predicted == labels))


def macro_f1(predicted: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """Return the mean over the classes of F1 = 2 tp / (2 tp + fp + fn), from 0 to 1.

    Each class that occurs in `predicted` or `labels` counts alike, however rare; this is scikit-learn's `f1_score` with
    `average='macro'`.

    Raises:
        ValueError: There are no labels, or not as many as predictions.
    """
    predicted, labels = _paired(predicted, labels)
    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def perplexity(negative_log_likelihood: float, targets: int) -> float:
    """Return exp(negative_log_likelihood / targets); infinite where that is too large for a float.

    Args:
        negative_log_likelihood: The sum of -ln p(target) over all targets, of all texts.
        targets: How many there are.

    Raises:
        ValueError: There are no targets.
    """
    if targets < 1:
        raise ValueError(f"perplexity got {targets} targets; give at least one.")
    try:
        return math.exp(negative_log_likelihood / targets)
    except OverflowError:
        return math.inf


def rouge(written: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Return the mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) over pairs of texts, each from 0 to 1.

    They are computed by the library `rouge-score`, without stemming. A token is a run of letters and digits, in lower
    case; a Chinese character is a token by itself. A text is taken as one sentence.

    Args:
        written: What the model has written.
        expected: The text to compare each with.

    Returns:
        'rouge1', 'rouge2' and 'rougeL'.

    Raises:
        ValueError: There are no texts, or not one to compare each with.
    """
    if not written or len(written) != len(expected):
        raise ValueError(f"rouge got {len(written)} texts and {len(expected)} to compare with; give pairs.")
    from rouge_score.rouge_scorer import RougeScorer  # It takes a second to import, and only texts need it.

    scorer = RougeScorer(list(_ROUGE), tokenizer=_WordsAndCharacters())
    scores = [scorer.score(right, own) for own, right in zip(written, expected, strict=True)]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in _ROUGE}


class _WordsAndCharacters:
    """Splits a text as `rouge` says; the library's own splitter drops all that is not ASCII."""

    def tokenize(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower())


def _paired(predicted: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(labels) or len(predicted) != len(labels):
        raise ValueError(f"got {len(predicted)} predictions and {len(labels)} labels; give one label for each.")
    return np.asarray(predicted), np.asarray(labels)
