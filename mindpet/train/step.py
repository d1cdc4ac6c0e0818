"""One training step: loss, gradient and update in one graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mindspore
from mindspore import Parameter, Tensor, amp, nn, ops
from mindspore import dtype as mstype

from mindpet.train.blocks import Blocks
from mindpet.train.kept_graphs import kept_graph
from mindpet.train.losses import ClassificationLoss
from mindpet.train.ranks import ALONE, Ranks
from mindpet.train.repeats import share_equal_layers
from mindpet.utils.dropout import Dropout
from mindpet.utils.names import STATE_MARK

__all__ = ["StepOutcome", "TrainStep"]

_FIRST_SCALE = 2.0**16
_SCALE_WINDOW = 1000


class StepOutcome(NamedTuple):
    """What a step gave; `StepRecord` explains the fields."""

    loss: float
    skipped: bool
    loss_scale: float


class _ScaledTrainStep(nn.TrainOneStepCell):
    """`nn.TrainOneStepCell` with MindSpore's dynamic loss scale, for gradients in float16.

    MindSpore's own `nn.TrainOneStepWithLossScaleCell` asks for an overflow status that no CPU has; this one looks
    at the gradients themselves.
    """

    def __init__(self, network: nn.Cell, optimizer: nn.Optimizer) -> None:
        super().__init__(network, optimizer)
        self.scaler = amp.DynamicLossScaler(_FIRST_SCALE, scale_factor=2, scale_window=_SCALE_WINDOW)

    def construct(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = self.network(*inputs)
        scale = self.scaler.scale_value * 1.0  # a copy: `adjust` writes into the original
        gradients = self.grad(self.network, self.weights)(*inputs, scale.astype(loss.dtype))
        gradients = self.scaler.unscale(self.grad_reducer(gradients))
        finite = amp.all_finite(gradients)
        if finite:
            loss = ops.depend(loss, self.optimizer(gradients))
        self.scaler.adjust(finite)
        return loss, ops.logical_not(finite), scale


class TrainStep:
    """Runs steps of `network` under `optimizer`.

    The step is MindSpore's `nn.TrainOneStepCell`, which runs the graph before it returns. With `scale_loss` the loss is
    multiplied by a dynamic scale, as float16 gradients need: 2^16 at first, doubled after 1,000 good ones; a step whose
    gradients overflow is skipped and halves it.

    On a CPU the masks of the network's `Dropout` cells follow from the seed and the number of the step, so that the
    same steps can be taken again.

    With several ranks each one computes its rows of the batch. Gradients are averaged before they are looked at or
    used, so that all ranks take the step, or skip it, alike, as one process with the whole batch would.

    Args:
        network: What `loss` takes.
        optimizer: Over the network's trainable parameters.
        scale_loss: Whether to scale the loss.
        seed: Of the dropout masks.
        ranks: The processes of the run; MindSpore's parallel mode must be that of `join_ranks`.
        loss: Makes the loss cell of `network`; see `mindpet.train.losses`.
        graphs: The folder in which compiled graphs are kept from run to run; None keeps none.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        scale_loss: bool,
        seed: int = 0,
        ranks: Ranks = ALONE,
        loss: Callable[[nn.Cell], nn.Cell] = ClassificationLoss,
        graphs: Path | None = None,
    ) -> None:
        one_step = _ScaledTrainStep if scale_loss else nn.TrainOneStepCell
        self.cell = one_step(loss(network), optimizer)
        self.cell.set_train()
        self._scales_loss = scale_loss
        self._network = network
        self._optimizer = optimizer
        self._ranks = ranks
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._count = Parameter(Tensor(0, mstype.int32), name=f"{STATE_MARK}step", requires_grad=False)
        self._prepare_dropouts(seed)
        self._graphs = graphs

    def _prepare_dropouts(self, seed: int) -> None:
        """Let each dropout of the network draw masks that can be drawn again, or at least others than other ranks."""
        on_cpu = mindspore.get_context("device_target") == "CPU"
        dropouts = [cell for _, cell in self._network.cells_and_names() if isinstance(cell, Dropout)]
        for layer, dropout in enumerate(dropouts):
            if on_cpu:
                dropout.use_mask(self._count, seed, layer, self._ranks.number)
            else:
                dropout.use_rank(self._ranks.number)

    def __call__(self, batch: Any) -> StepOutcome:
        """Take one step on `batch`, of which a rank computes its rows only."""
        *inputs, _ = self._ranks.part_of(batch)
        outputs = self._run(*map(Tensor, inputs), Tensor(self._ranks.weight_of(batch), mstype.float32))
        if self._scales_loss:
            loss, overflow, scale = (output.asnumpy() for output in outputs)
            outcome = StepOutcome(self._ranks.mean(float(loss)), bool(overflow), float(scale))
        else:
            outcome = StepOutcome(self._ranks.mean(float(outputs.asnumpy())), skipped=False, loss_scale=1.0)
        self._count.set_data(Tensor(int(self._count.asnumpy()) + 1, mstype.int32))
        return outcome

    def _run(self, *inputs: Tensor) -> Any:
        """Run the step, which compiles a graph for each new shape of its inputs."""
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        if shapes in self._shapes:
            return self.cell(*inputs)
        blocks = Blocks(self._network, self._optimizer.parameters)
        with (
            kept_graph(self.cell, inputs, self._graphs, blocks.described()),
            blocks.in_place(),
            share_equal_layers(self._network),
        ):
            outputs = self.cell(*inputs)
        self._shapes.add(shapes)
        return outputs

    def state(self) -> dict[str, Parameter]:
        """Return everything that a step changes, by name.

        That is the trained parameters, the optimizer's moments, count and learning rates, the number of the step, and
        the loss scale with the number of good steps since it last changed.
        """
        parameters = [*self._network.trainable_params(), *self._optimizer.get_parameters(), self._count]
        state = {parameter.name: parameter for parameter in parameters}
        if self._scales_loss:
            state |= {"loss_scale": self.cell.scaler.scale_value, "loss_scale_counter": self.cell.scaler.counter}
        return state
