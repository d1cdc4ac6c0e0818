"""What a network says of texts."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from mindpet.data.batches import Batches

__all__ = ["predict", "run_batches"]


def run_batches(cell: nn.Cell, batches: Batches) -> np.ndarray:
    """Run `cell`, not in training, on each text of `batches`.

    Args:
        cell: Takes input_ids, attention_mask and token_type_ids, each (batch, length), and returns (batch, n).
        batches: The texts.

    Returns:
        An array (texts, n) in the order of the texts.
    """
    was_training = cell.training
    cell.set_train(False)
    outputs = [
        cell(Tensor(batch.input_ids), Tensor(batch.attention_mask), Tensor(batch.token_type_ids)).asnumpy()
        for batch in batches.ordered()
    ]
    cell.set_train(was_training)
    return batches.to_input_order(outputs)


def predict(network: nn.Cell, batches: Batches) -> np.ndarray:
    """Return the label that `network` gives each text, an int array (texts,)."""
    return run_batches(network, batches).argmax(axis=1)
