"""What a network says of texts, and how well it predicts them."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpet.data.batches import Batches
from mindpet.data.language import LanguageBatches
from mindpet.kernels import IGNORED_LABEL
from mindpet.train.losses import LanguageLoss
from mindpet.train.ranks import ALONE, Ranks

__all__ = ["predict", "run_batches", "sum_losses"]


def run_batches(cell: nn.Cell, batches: Batches, ranks: Ranks = ALONE) -> np.ndarray:
    """Run `cell`, not in training, on each text of `batches`; every rank takes its rows of each batch.

    Args:
        cell: Takes input_ids, attention_mask and token_type_ids, each (batch, length), and returns (batch, n).
        batches: The texts.
        ranks: Who shares the work; all of them get the whole result.

    Returns:
        A float32 array (texts, n) in the order of the texts.
    """
    was_training = cell.training
    cell.set_train(False)
    outputs = []
    for batch in batches.ordered():
        part = ranks.part_of(batch)
        own = cell(Tensor(part.input_ids), Tensor(part.attention_mask), Tensor(part.token_type_ids)).asnumpy()
        output = np.zeros((batches.batch_size, *own.shape[1:]), np.float32)
        output[ranks.rows_of(batches.batch_size)] = own
        outputs.append(output)
    cell.set_train(was_training)
    return ranks.sum(batches.to_input_order(outputs))


def predict(network: nn.Cell, batches: Batches, ranks: Ranks = ALONE) -> np.ndarray:
    """Return the label that `network` gives each text, an int array (texts,)."""
    return run_batches(network, batches, ranks).argmax(axis=1)


def sum_losses(loss: LanguageLoss, batches: LanguageBatches, ranks: Ranks = ALONE) -> tuple[float, int]:
    """Return the sum of the loss over all targets of `batches`, out of training, and their number.

    Every rank takes its rows of each batch.

    Args:
        loss: The network and its loss; one that was run before a method was attached must not be used again.
        batches: The texts.
        ranks: Who shares the work; all of them get the whole result.
    """
    was_training = loss.network.training
    loss.set_train(False)
    total, targets = 0.0, 0
    for batch in batches.ordered():
        *inputs, _ = part = ranks.part_of(batch)
        own = int(np.sum(part.labels != IGNORED_LABEL))
        total += own * float(loss(*map(Tensor, inputs), Tensor(1.0, mstype.float32)).asnumpy())
        targets += own
    loss.set_train(was_training)
    sums = ranks.sum(np.array([total, targets], np.float32))
    return float(sums[0]), int(sums[1])
