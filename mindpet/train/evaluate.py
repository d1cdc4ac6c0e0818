"""What a network says of texts."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from mindpet.data.batches import Batches
from mindpet.train.ranks import ALONE, Ranks

__all__ = ["predict", "run_batches"]


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
