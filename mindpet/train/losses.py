"""The loss of each task: a cell that takes a batch's arrays, all but `indices`, and a weight.

A label of -1 does not count, and neither does a row that holds nothing else: a filler.
"""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.delta.r_drop import RDropLoss, rdrop_repeat

__all__ = ["ClassificationLoss", "LanguageLoss", "RDropClassificationLoss"]


class ClassificationLoss(nn.Cell):
    """The mean cross entropy of the rows times a weight.

    Args:
        network: Gives logits (batch, classes) for input_ids, attention_mask and token_type_ids.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the loss for labels (batch,), a float32 scalar."""
        return weight * kernels.cross_entropy(self.network(input_ids, attention_mask, token_type_ids), labels)


class RDropClassificationLoss(nn.Cell):
    """R-Drop (arXiv:2106.14448) times a weight: each row is taken twice, with another dropout each time.

    Args:
        network: Gives logits (batch, classes) for input_ids, attention_mask and token_type_ids.
        alpha: The weight of the divergence; see `RDropLoss`.
    """

    def __init__(self, network: nn.Cell, alpha: float) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.alpha = alpha
        self.loss = RDropLoss()

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the loss for labels (batch,), a float32 scalar; the copy of a row lies next to it."""
        inputs = rdrop_repeat(input_ids, attention_mask, token_type_ids)
        (labels,) = rdrop_repeat(labels)
        logits = self.network(*inputs).astype(mindspore.float32)  # (2 batch, classes)
        counts = (labels != kernels.IGNORED_LABEL).astype(mindspore.float32)
        # Of a filler both terms are zero: no class is right, and its two distributions are equal.
        logits = logits * counts.expand_dims(-1)
        right = ops.arange(logits.shape[1]).astype(labels.dtype) == labels.expand_dims(-1)
        mean_of_all = self.loss(logits, right.astype(mindspore.float32), self.alpha)
        return weight * mean_of_all * labels.shape[0] / ops.maximum(counts.sum(), 1.0)


class LanguageLoss(nn.Cell):
    """The mean cross entropy of the targets times a weight.

    Args:
        network: Gives logits (batch, length, vocabulary) for input_ids and attention_mask.
    """

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
        """Return the loss for labels (batch, length), each the token that comes next; a float32 scalar."""
        return weight * kernels.cross_entropy(self.network(input_ids, attention_mask), labels)
