"""DoRA: LoRA for the direction of each row of the weight, and a trained length for it (arXiv:2402.09353)."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._dense import make_parameter
from mindpet.delta._host import host_values
from mindpet.delta._shard import shard_methods
from mindpet.delta._state import refuse_merged_training
from mindpet.delta.lora import LoRADense

__all__ = ["DoRADense"]

_SMALLEST = 1e-30  # a row of zeros has the norm 0; its factor is then 0 / _SMALLEST = 0 instead of no number


class DoRADense(LoRADense):
    r"""A dense layer whose weight is split into direction and magnitude; LoRA changes the one, a vector is the other.

    outputs = activation(x weight^T + bias + (ratio - 1) * (y weight^T) + ratio * scaling * (y lora_a^T lora_b^T))

    with y = dropout(x), scaling = lora_alpha / lora_rank, and for each output channel

    ratio = magnitude / norm,    norm = ||weight + scaling * lora_b lora_a|| over the input channels.

    Without dropout this is activation(x V^T + bias) with V = magnitude * (weight + scaling * lora_b lora_a) / norm, so
    that each row of V has the length that `magnitude` says. The norm follows the factors, but no gradient goes through
    it, as the paper proposes (section 4.3) and PEFT does.

    `mindpet_delta_lora_a` (lora_rank, in_channels), `mindpet_delta_lora_b` (out_channels, lora_rank) and
    `mindpet_delta_lora_magnitude` (out_channels,) are meant to be trained; `freeze_delta(network, 'lora')` freezes the
    rest. The magnitude starts as the norm of the weight's rows. While lora_b is zero, as at first, the ratio is
    exactly 1 and the result exactly the base layer's. Who gives the weight other values afterwards, by loading a
    checkpoint for example, calls `reset_magnitude` then.

    A `scaling` of 0 switches off all that DoRA does, the magnitude too: the result is the base layer's.

    In semi-automatic parallel mode the rows or the channels may be split. Both at once MindSpore's planner refuses
    where the products run in the parameters' own dtype, because it would give one parameter two layouts.

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        lora_rank (int): the number of rows of lora_a and columns of lora_b.
        lora_alpha (Union[int, float]): the numerator of the scale, not 0.
        lora_dropout (float): the rate at which DoRA drops its input in training, in [0, 1). Above 0 a training step
            takes a second product with the weight. Default: 0.0.
        lora_a_init (Union[Tensor, str, Initializer, Number]): how lora_a starts.
            Default: HeUniform(negative_slope=math.sqrt(5)).
        lora_b_init (Union[Tensor, str, Initializer, Number]): how lora_b starts. Default: 'zeros'.
        param_init_type (dtype): the dtype of lora_a, lora_b and the magnitude: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype of the products with `x`: float16 (default), float32 or bfloat16. The norm is
            computed in float32 and rounded to the magnitude's dtype.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether there is a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation, by name or itself. Default: None.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError, NotPositiveError, ValueError, KeyError: as LoRADense does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mindpet_delta_lora_magnitude = make_parameter(
            "magnitude", "ones", (self.out_channels,), self.mindpet_delta_lora_b.dtype, "mindpet_delta_lora_magnitude"
        )
        self.magnitude_mul = ops.Mul()
        self.magnitude_add = ops.Add()
        # Without a strategy, data parallelism would cut these matrices, which have no batch.
        self.norm_transpose = ops.Transpose().shard(((1, 1),))
        self.norm_scale = ops.Mul().shard(((1, 1), ()))
        self.norm_matmul = ops.MatMul().shard(((1, 1), (1, 1)))
        self.norm_add = ops.Add().shard(((1, 1), (1, 1)))
        self.norm_mul = ops.Mul().shard(((1, 1), (1, 1)))
        self.norm_sum = ops.ReduceSum().shard(((1, 1),))
        self.abs = ops.Abs()
        self.select = ops.Select()
        self.maximum = ops.Maximum()
        self.sqrt = ops.Sqrt()
        self.stop_gradient = ops.StopGradient()
        self.reset_magnitude()

    def take_over(self, dense: nn.Dense) -> None:
        """Use the Parameters, primitives, activation and training flag of `dense`, and start as long as its weight."""
        super().take_over(dense)
        self.reset_magnitude()

    def reset_magnitude(self) -> None:
        """Let the magnitude start anew as the norms of the weight's rows; to be called before the cell first runs."""
        self.rows_first = self.matmul.transpose_b  # else the weight is (in_channels, out_channels)
        rows = self._host_rows()
        norms = np.linalg.norm(rows.astype(np.float64), axis=1).astype(np.float32)
        self.first_norm = Tensor(norms)
        # No order of summation is further from the true sum of n squares than by n roundings of the sum.
        self.rounding = rows.shape[1] * 2.0**-24
        magnitude = self.mindpet_delta_lora_magnitude
        magnitude.set_data(Tensor(norms).astype(magnitude.dtype))  # of its own, as training writes in place

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        rows = self.to_rows(x)
        weight = self.cast(self.weight, self.compute_dtype)
        product = self.matmul(rows, weight)
        output = product
        if self.has_bias:
            output = self.bias_add(output, self.cast(self.bias, self.compute_dtype))
        if self.training and self.lora_dropout.p > 0:
            rows = self.lora_dropout(rows)
            product = self.matmul(rows, weight)
        return self.finish(self.add(output, self.change(rows, product)), x)

    def change(self, rows: Tensor, product: Tensor) -> Tensor:
        """Return (ratio - 1) * product + ratio * scaling * (rows lora_a^T lora_b^T), of shape (rows, out_channels).

        Args:
            rows: the inputs, of shape (rows, in_channels).
            product: rows weight^T.
        """
        refuse_merged_training(self)
        ratio = self.ratio()
        scaling = self.cast(self.scaling, mstype.float32)
        excess = (ratio - 1.0) * self.cast(scaling != 0.0, mstype.float32)
        longer = self.magnitude_mul(product, self.cast(excess, self.compute_dtype))
        turned = self.mul(self.low_rank(rows), self.cast(ratio * scaling, self.compute_dtype))
        return self.magnitude_add(longer, turned)

    def ratio(self) -> Tensor:
        """Return magnitude / norm for each output channel, in float32, with the norm as a constant for the gradient."""
        magnitude = self.mindpet_delta_lora_magnitude
        norm = self.cast(self.cast(self.norm(), magnitude.dtype), mstype.float32)
        return self.cast(magnitude, mstype.float32) / self.stop_gradient(self.maximum(norm, _SMALLEST))

    def norm(self) -> Tensor:
        """Return ||weight + scaling * lora_b lora_a|| over the input channels, of shape (out_channels,), in float32.

        With P = scaling * lora_b lora_a it is the root of ||weight||^2 + <P, 2 weight + P>. The product is exactly zero
        while lora_b is; the root of a square is then the number itself, rounding included. The norm of the weight alone
        is the first one, with which the magnitude has started, as long as the weight's norm agrees with it to rounding.
        """
        weight = self.cast(self.weight, mstype.float32)
        if not self.rows_first:
            weight = self.norm_transpose(weight, (1, 0))
        lora_a = self.cast(self.mindpet_delta_lora_a, mstype.float32)
        lora_b = self.cast(self.mindpet_delta_lora_b, mstype.float32)
        change = self.norm_matmul(self.norm_scale(lora_b, self.cast(self.scaling, mstype.float32)), lora_a)
        growth = self.norm_sum(self.norm_mul(change, self.norm_add(weight, self.norm_add(weight, change))), 1)
        measured = self.sqrt(self.norm_sum(self.norm_mul(weight, weight), 1))
        agrees = self.abs(measured - self.first_norm) <= self.rounding * self.first_norm
        start = self.select(agrees, self.first_norm, measured)
        return self.sqrt(self.maximum(start * start + growth, 0.0))

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the values with which the base layer alone computes what this layer does, by attribute, in float32.

        The weight becomes magnitude * (weight + scaling * lora_b lora_a) / norm, or with a scaling of 0 stays.
        """
        rows, scaling = self._host_rows(), host_values(self.scaling)
        if scaling != 0:
            rows += scaling * (host_values(self.mindpet_delta_lora_b) @ host_values(self.mindpet_delta_lora_a))
            norm = np.maximum(np.linalg.norm(rows, axis=1), _SMALLEST)
            rows *= (host_values(self.mindpet_delta_lora_magnitude) / norm)[:, None]
        return {"weight": rows if self.rows_first else rows.T}

    def _host_rows(self) -> np.ndarray:
        """Return the weight on the host, one row for each output channel, whatever its own layout."""
        weight = host_values(self.weight)
        return weight if self.rows_first else weight.T

    shard, shard_like = shard_methods(
        {
            "strategy_org_dense_matmul": ("matmul", "ni,oi"),
            "strategy_org_bias_add": ("bias_add", "no,o"),
            "strategy_lora_dropout": ("lora_dropout.dropout", "ni"),
            "strategy_lora_a_matmul": ("lora_a_matmul", "ni,ri"),
            "strategy_lora_b_matmul": ("lora_b_matmul", "nr,or"),
            "strategy_lora_mul": ("mul", "no,o"),
            "strategy_lora_add": ("add", "no,no"),
            "strategy_magnitude_mul": ("magnitude_mul", "no,o"),
            "strategy_magnitude_add": ("magnitude_add", "no,no"),
            "strategy_norm_transpose": ("norm_transpose", "io"),
            "strategy_norm_scale": ("norm_scale", "or,"),
            "strategy_norm_matmul": ("norm_matmul", "or,ri"),
            "strategy_norm_add": ("norm_add", "oi,oi"),
            "strategy_norm_mul": ("norm_mul", "oi,oi"),
            "strategy_norm_sum": ("norm_sum", "oi"),
            "strategy_activation": ("activation", "no"),
        }
    )
