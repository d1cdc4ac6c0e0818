"""Several LoRA adapters in one dense layer, of which each example has its own; for inference."""

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._dense import DeltaDense
from mindpet.utils.names import STATE_MARK

__all__ = ["StackedLoRADense"]


class StackedLoRADense(DeltaDense):
    r"""A dense layer with a LoRA branch for each of several adapters.

    With k = adapter_index[e], an example e has the output

    outputs_e = activation(x_e weight^T + bias + scale_k * (x_e a_k^T b_k^T))

    The stacked factors `mindpet_state_stacked_a` (adapters, lora_rank, in_channels) and `mindpet_state_stacked_b`
    (adapters, out_channels, lora_rank), the scales `mindpet_state_stacked_scale` (adapters,) and the index
    `mindpet_state_adapter_index` (batch,), int32, are Parameters without gradient, which no file holds. A smaller rank
    is filled up with zeros. The index is shared by all layers of a network.

    Args:
        dense (nn.Dense): the layer to stand in for; its Parameters, primitives and activation are used.
        lora_a (numpy.ndarray): the stacked factors a, float32.
        lora_b (numpy.ndarray): the stacked factors b, float32.
        scale (numpy.ndarray): the scales, float32.
        adapter_index (Parameter): which adapter each example has.
        compute_dtype (dtype): the dtype of the products.

    Inputs:
        - **x** (Tensor) - of shape (batch, *, in_channels) or (batch * length, in_channels), with the rows of an
          example beside each other.

    Outputs:
        Tensor of the shape of `x` with out_channels for in_channels, in the dtype of `x`.

    Raises:
        ValueError: the rows of `x` are no multiple of the batch, or the layer is trained.
    """

    def __init__(
        self,
        dense: nn.Dense,
        lora_a: np.ndarray,
        lora_b: np.ndarray,
        scale: np.ndarray,
        adapter_index: Parameter,
        compute_dtype: Any,
    ) -> None:
        super().__init__(**self.base_arguments(dense, compute_dtype))
        self.mindpet_state_stacked_a = _constant("stacked_a", lora_a)
        self.mindpet_state_stacked_b = _constant("stacked_b", lora_b)
        self.mindpet_state_stacked_scale = _constant("stacked_scale", scale)
        self.index_gather = ops.Gather()
        self.lora_a_matmul = ops.BatchMatMul(transpose_b=True)
        self.lora_b_matmul = ops.BatchMatMul(transpose_b=True)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.take_over(dense)
        name = adapter_index.name
        self.mindpet_state_adapter_index = adapter_index
        adapter_index.name = name

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        if self.training:
            raise ValueError(
                "The adapters are stacked, one for each example, which is for inference only. Call "
                "mindpet.unstack_adapters before training, or set_train(False)."
            )
        rows = self.to_rows(x)
        return self.finish(self.add(self.base_product(rows), self.branch(rows)), x)

    def branch(self, rows: Tensor) -> Tensor:
        """Return scale * (rows a^T b^T) with each example's own factors, of shape (rows, out_channels)."""
        index = self.mindpet_state_adapter_index
        batch = index.shape[0]
        if rows.shape[0] % batch != 0:
            raise ValueError(
                f"The layer is given {rows.shape[0]} rows, and adapter_index names adapters for {batch} examples; "
                "accepted is a multiple of that. Call mindpet.set_adapter_index with one adapter for each example."
            )
        lora_a = self.cast(self.index_gather(self.mindpet_state_stacked_a, index, 0), self.compute_dtype)
        lora_b = self.cast(self.index_gather(self.mindpet_state_stacked_b, index, 0), self.compute_dtype)
        scale = self.cast(self.index_gather(self.mindpet_state_stacked_scale, index, 0), self.compute_dtype)
        examples = self.reshape(rows, (batch, -1, self.in_channels))  # (batch, length, in_channels)
        change = self.lora_b_matmul(self.lora_a_matmul(examples, lora_a), lora_b)
        return self.reshape(self.mul(change, self.reshape(scale, (batch, 1, 1))), (-1, self.out_channels))


def _constant(name: str, values: np.ndarray) -> Parameter:
    return Parameter(Tensor(values, mstype.float32), name=f"{STATE_MARK}{name}", requires_grad=False)
