"""One training step: loss, gradient and update in one graph."""

from __future__ import annotations

from typing import NamedTuple

from mindspore import Tensor, nn

from mindpet import kernels
from mindpet.data.batches import Batch

__all__ = ["StepOutcome", "TrainStep"]

_FIRST_SCALE = 2.0**16
_SCALE_WINDOW = 1000


class _ClassificationLoss(nn.Cell):
    """The network and its cross entropy; rows labelled -1 are filler and do not count."""

    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor) -> Tensor:
        return kernels.cross_entropy(self.network(input_ids, attention_mask, token_type_ids), labels)


class StepOutcome(NamedTuple):
    """What a step gave; `StepRecord` explains the fields."""

    loss: float
    skipped: bool
    loss_scale: float


class TrainStep:
    """Runs steps of `network` under `optimizer`.

    The step is MindSpore's `nn.TrainOneStepCell`, which runs the graph before it returns; with `scale_loss` it is
    `nn.TrainOneStepWithLossScaleCell` with a dynamic loss scale (2^16 at first, doubled after 1,000 good steps, halved
    at each overflow), as float16 gradients need.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer, scale_loss: bool) -> None:
        loss = _ClassificationLoss(network)
        if scale_loss:
            scale = nn.DynamicLossScaleUpdateCell(_FIRST_SCALE, scale_factor=2, scale_window=_SCALE_WINDOW)
            self.cell: nn.Cell = nn.TrainOneStepWithLossScaleCell(loss, optimizer, scale_sense=scale)
        else:
            self.cell = nn.TrainOneStepCell(loss, optimizer)
        self.cell.set_train()
        self._scales_loss = scale_loss

    def __call__(self, batch: Batch) -> StepOutcome:
        """Take one step on `batch`."""
        outputs = self.cell(
            Tensor(batch.input_ids), Tensor(batch.attention_mask), Tensor(batch.token_type_ids), Tensor(batch.labels)
        )
        if not self._scales_loss:
            return StepOutcome(float(outputs.asnumpy()), skipped=False, loss_scale=1.0)
        loss, overflow, scale = outputs
        return StepOutcome(float(loss.asnumpy()), bool(overflow.asnumpy()), float(scale.asnumpy()))
