"""What a network says of texts, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from mindspore import Tensor, nn

from mindpet.data.batches import Batch

__all__ = ["predict", "run_batches"]


def run_batches(cell: nn.Cell, batches: Iterable[Batch], count: int) -> np.ndarray:
    """Run `cell` on `batches` and return its outputs in the order of the texts, filler rows left out.

    Args:
        cell: Takes input_ids, attention_mask and token_type_ids, each (batch, length), and returns (batch, n).
        batches: Batches that hold each text once.
        count: Number of texts.

    Returns:
        A float32 array (count, n).
    """
    was_training = cell.training
    cell.set_train(False)
    rows: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    for batch in batches:
        output = cell(Tensor(batch.input_ids), Tensor(batch.attention_mask), Tensor(batch.token_type_ids))
        real = batch.indices >= 0
        rows.append(output.asnumpy()[real])
        indices.append(batch.indices[real])
    cell.set_train(was_training)
    outputs = np.empty((count, rows[0].shape[1]), np.float32)
    outputs[np.concatenate(indices)] = np.concatenate(rows)
    return outputs


def predict(network: nn.Cell, batches: Iterable[Batch], count: int) -> np.ndarray:
    """Return the label that `network` gives each text, an int array (count,)."""
    return run_batches(network, batches, count).argmax(axis=1)
