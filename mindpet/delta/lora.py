"""LoRA: a frozen dense layer plus a trainable product of two thin matrices (arXiv:2106.09685)."""

import math
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import HeUniform

from mindpet.delta._checks import (
    check_dtype,
    check_float_rate,
    check_nonzero_number,
    check_positive_int,
)
from mindpet.delta._dense import DeltaDense, make_parameter
from mindpet.delta._host import host_values
from mindpet.delta._shard import shard_methods
from mindpet.delta._state import refuse_merged_training
from mindpet.utils.version_control import get_dropout

__all__ = ["LoRADense"]


class LoRADense(DeltaDense):
    r"""A dense layer with a LoRA branch.

    outputs = activation(x weight^T + bias + lora_alpha / lora_rank * dropout(x) lora_a^T lora_b^T)

    Only `mindpet_delta_lora_a` (lora_rank, in_channels) and `mindpet_delta_lora_b` (out_channels, lora_rank) are meant
    to be trained; `freeze_delta(network, 'lora')` freezes the rest. With the default `lora_b_init` the branch is zero
    at first. The scale is the attribute `scaling`, a number; who must change it after the first call assigns a
    Parameter without gradient there, before that call.

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        lora_rank (int): the number of rows of lora_a and columns of lora_b.
        lora_alpha (Union[int, float]): the numerator of the scale, not 0.
        lora_dropout (float): the rate at which the branch drops its input in training, in [0, 1). With the default,
            0.0, the graph holds no dropout.
        lora_a_init (Union[Tensor, str, Initializer, Number]): how lora_a starts.
            Default: HeUniform(negative_slope=math.sqrt(5)).
        lora_b_init (Union[Tensor, str, Initializer, Number]): how lora_b starts. Default: 'zeros'.
        param_init_type (dtype): the dtype of lora_a and lora_b: float32 (default), float16 or, as an extension,
            bfloat16.
        compute_dtype (dtype): the dtype in which all products run: float16 (default), float32 or, as an extension,
            bfloat16.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether there is a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation, by name or itself. Default: None.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: `in_channels`, `out_channels` or `lora_rank` is no int; `lora_alpha` is no int or float; `has_bias`
            is no bool; `lora_dropout` is no float; `activation` is no str, Cell, Primitive or None; an initializer is
            no Tensor, str, Initializer or number; a dtype is none of the three.
        NotPositiveError: `in_channels`, `out_channels` or `lora_rank` is 0 or negative (a TypeError and a ValueError).
        ValueError: `lora_alpha` is 0, NaN or infinite; `lora_dropout` lies outside [0, 1); an initializer is a Tensor
            of the wrong shape or the name of none.
        KeyError: `activation` is a str that names no activation.

    Examples:
        Over eight devices, with two parts of the batch and four of the output channels. The activation takes one
        tuple: the planner refuses the ((2, 4), (2, 4)) that is sometimes seen, as an activation has one input.

        >>> layer = LoRADense(1 * 28 * 28, 512, lora_rank=8, lora_alpha=16, lora_dropout=0.1, activation="relu")
        >>> layer = layer.shard(
        ...     strategy_org_dense_matmul=((2, 1), (4, 1)),
        ...     strategy_org_bias_add=((2, 4), (4,)),
        ...     strategy_lora_dropout=((2, 1),),
        ...     strategy_lora_a_matmul=((2, 1), (1, 1)),
        ...     strategy_lora_b_matmul=((2, 1), (4, 1)),
        ...     strategy_lora_mul=((2, 4), ()),
        ...     strategy_lora_add=((2, 4), (2, 4)),
        ...     strategy_activation=((2, 4),),
        ... )
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        lora_rank: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        lora_a_init: Any = HeUniform(negative_slope=math.sqrt(5)),  # noqa: B008
        lora_b_init: Any = "zeros",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        has_bias: bool = True,
        activation: Any = None,
    ) -> None:
        check_positive_int("lora_rank", lora_rank)
        check_nonzero_number("lora_alpha", lora_alpha)
        check_float_rate("lora_dropout", lora_dropout)
        check_dtype("param_init_type", param_init_type)
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, compute_dtype)
        self.mindpet_delta_lora_a = make_parameter(
            "lora_a_init", lora_a_init, (lora_rank, in_channels), param_init_type, "mindpet_delta_lora_a"
        )
        self.mindpet_delta_lora_b = make_parameter(
            "lora_b_init", lora_b_init, (out_channels, lora_rank), param_init_type, "mindpet_delta_lora_b"
        )
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.scaling: Any = lora_alpha / lora_rank
        self.lora_dropout = get_dropout(lora_dropout)
        self.lora_a_matmul = ops.MatMul(transpose_b=True)
        self.lora_b_matmul = ops.MatMul(transpose_b=True)
        self.mul = ops.Mul()
        self.add = ops.Add()

    @classmethod
    def from_dense(
        cls,
        dense: nn.Dense,
        lora_rank: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        lora_a_init: Any = HeUniform(negative_slope=math.sqrt(5)),  # noqa: B008
        lora_b_init: Any = "zeros",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
    ) -> "LoRADense":
        """Return a layer that stands in for `dense`: with its own Parameters, primitives, strategies and activation.

        Args:
            dense: the layer to replace; it is left as it is.
            lora_rank: as for the class, like the other arguments.
            lora_alpha: the numerator of the scale.
            lora_dropout: the rate of the branch's dropout.
            lora_a_init: how lora_a starts.
            lora_b_init: how lora_b starts; with the default the result equals `dense` exactly.
            param_init_type: the dtype of lora_a and lora_b.
            compute_dtype: the dtype of all products; None takes the dtype of `dense.weight`.

        Raises:
            TypeError: `dense` is no nn.Dense or computes something of its own; and all that the class raises.
        """
        layer = cls(
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            lora_a_init=lora_a_init,
            lora_b_init=lora_b_init,
            param_init_type=param_init_type,
            **cls.base_arguments(dense, compute_dtype),
        )
        layer.take_over(dense)
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        rows = self.to_rows(x)
        return self.finish(self.add(self.base_product(rows), self.branch(rows)), x)

    def branch(self, rows: Tensor) -> Tensor:
        """Return scaling * dropout(rows) lora_a^T lora_b^T, of shape (rows, out_channels)."""
        refuse_merged_training(self)
        return self.mul(self.low_rank(self.lora_dropout(rows)), self.cast(self.scaling, self.compute_dtype))

    def low_rank(self, rows: Tensor) -> Tensor:
        """Return rows lora_a^T lora_b^T, of shape (rows, out_channels)."""
        lora_a = self.cast(self.mindpet_delta_lora_a, self.compute_dtype)
        lora_b = self.cast(self.mindpet_delta_lora_b, self.compute_dtype)
        return self.lora_b_matmul(self.lora_a_matmul(rows, lora_a), lora_b)

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the values with which the base layer alone computes what this layer does, by attribute, in float32.

        That is weight + scaling * lora_b lora_a, computed on the host in the weight's own layout.
        """
        change = host_values(self.mindpet_delta_lora_b) @ host_values(self.mindpet_delta_lora_a)
        change *= host_values(self.scaling)
        return {"weight": host_values(self.weight) + (change if self.matmul.transpose_b else change.T)}

    shard, shard_like = shard_methods(
        {
            "strategy_org_dense_matmul": ("matmul", "ni,oi"),
            "strategy_org_bias_add": ("bias_add", "no,o"),
            "strategy_lora_dropout": ("lora_dropout.dropout", "ni"),
            "strategy_lora_a_matmul": ("lora_a_matmul", "ni,ri"),
            "strategy_lora_b_matmul": ("lora_b_matmul", "nr,or"),
            "strategy_lora_mul": ("mul", "no,"),
            "strategy_lora_add": ("add", "no,no"),
            "strategy_activation": ("activation", "no"),
        }
    )
