from functools import partial

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.data.batches import Batch
from mindpet.data.language import LanguageBatch
from mindpet.train.losses import ClassificationLoss, LanguageLoss, RDropClassificationLoss
from mindpet.train.ranks import Ranks
from mindpet.train.step import TrainStep
from tests.methods import small_bert

ROWS, CLASSES, ALPHA = 6, 3, 2.5


class _Noisy(nn.Cell):
    """Logits from a table by the first token, plus noise by the row: two copies of a text get different ones."""

    def __init__(self, rows, share=0):
        super().__init__()
        generator = np.random.default_rng(3)
        self.table = Parameter(Tensor(generator.normal(0, 1, (20, CLASSES)), mstype.float32), name="table")
        noise = generator.normal(0, 1, (2 * ROWS, CLASSES))[share * rows : (share + 1) * rows]
        self.noise = Tensor(noise, mstype.float32)

    def construct(self, input_ids, attention_mask, token_type_ids):
        return self.table[input_ids[:, 0]] + self.noise


def _texts():
    """Return a batch whose last row is a filler: it repeats a text and does not count."""
    ids = np.arange(ROWS, dtype=np.int32)[:, None]
    ids[-1] = 0
    labels = np.array([0, 2, 1, 1, 0, -1], np.int32)
    return Batch(ids, np.ones_like(ids), np.zeros_like(ids), labels, np.where(labels < 0, -1, np.arange(ROWS)))


def _log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _r_drop(log_probabilities, labels):
    """Return equation 4 of the paper over the texts, halved, in float64."""
    pairs, real = log_probabilities.reshape(-1, 2, CLASSES), labels >= 0
    p, q = pairs[real, 0], pairs[real, 1]
    right = labels[real][:, None]
    entropy = -(np.take_along_axis(p, right, 1) + np.take_along_axis(q, right, 1)).mean() / 2
    divergence = ((np.exp(p) * (p - q)).sum(-1) + (np.exp(q) * (q - p)).sum(-1)).mean() / 4
    return entropy + ALPHA * divergence


def test_r_drop_is_the_formula_over_the_texts_and_a_filler_counts_nothing(mode):
    batch, network = _texts(), _Noisy(2 * ROWS)
    logits = np.repeat(network.table.asnumpy()[batch.input_ids[:, 0]], 2, axis=0) + network.noise.asnumpy()
    expected = _r_drop(_log_softmax(logits.astype(np.float64)), batch.labels)
    loss = RDropClassificationLoss(network, ALPHA)
    assert float(loss(*map(Tensor, batch[:-1]), Tensor(1.0))) == pytest.approx(expected, rel=1e-5)
    assert float(loss(*map(Tensor, batch[:-1]), Tensor(0.5))) == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_mean_of_the_ranks_r_drop_is_that_of_the_whole_batch(count):
    batch, parts = _texts(), []
    whole = RDropClassificationLoss(_Noisy(2 * ROWS), ALPHA)(*map(Tensor, batch[:-1]), Tensor(1.0))
    for rank in (Ranks(number, count) for number in range(count)):
        loss = RDropClassificationLoss(_Noisy(2 * ROWS // count, rank.number), ALPHA)
        parts.append(float(loss(*map(Tensor, rank.part_of(batch)[:-1]), Tensor(rank.weight_of(batch)))))
    assert np.mean(parts) == pytest.approx(float(whole), rel=1e-5)


def test_r_drop_sees_two_dropouts_of_a_text():
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    batch = Batch(ids, np.ones_like(ids), np.zeros_like(ids), np.array([0, 1], np.int32), np.arange(2))
    losses = {}
    for name, make in {
        "cross entropy": ClassificationLoss,
        "both passes": partial(RDropClassificationLoss, alpha=0.0),
        "r-drop": partial(RDropClassificationLoss, alpha=4.0),
    }.items():
        network = small_bert(hidden_dropout_prob=0.5)
        optimizer = nn.SGD(network.trainable_params(), 0.0)
        losses[name] = TrainStep(network, optimizer, scale_loss=False, seed=3, loss=make)(batch).loss
    assert losses["r-drop"] > losses["both passes"] + 1e-3, "the two distributions differ"
    assert losses["both passes"] != losses["cross entropy"]


class _Words(nn.Cell):
    """Logits (batch, length, 5) from a table by the token."""

    def __init__(self):
        super().__init__()
        self.table = Parameter(Tensor(np.random.default_rng(1).normal(0, 1, (5, 5)), mstype.float32), name="table")

    def construct(self, input_ids, attention_mask):
        return self.table[input_ids]


def test_a_language_models_loss_is_the_mean_over_targets_on_any_number_of_ranks():
    ids = np.random.default_rng(2).integers(0, 5, (4, 6)).astype(np.int32)
    labels = np.roll(ids, -1, axis=1)
    for row, targets in enumerate((5, 1, 0, 3)):  # unequal numbers, and a row without any
        labels[row, targets:] = -1
    batch = LanguageBatch(ids, np.ones_like(ids), labels, np.arange(4))
    network = _Words()
    log_probabilities = _log_softmax(network.table.asnumpy()[ids].astype(np.float64))
    told = np.take_along_axis(log_probabilities, np.maximum(labels, 0)[..., None], -1)[..., 0]
    expected = -told[labels >= 0].mean()
    for count in (1, 2, 4):
        parts = [
            float(LanguageLoss(network)(*map(Tensor, rank.part_of(batch)[:-1]), Tensor(rank.weight_of(batch))))
            for rank in (Ranks(number, count) for number in range(count))
        ]
        assert np.mean(parts) == pytest.approx(expected, rel=1e-5)
