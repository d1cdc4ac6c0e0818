"""IA3: a dense layer whose outputs, or inputs, are multiplied by a trained vector (arXiv:2205.05638)."""

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._checks import check_bool, check_dtype
from mindpet.delta._dense import DeltaDense, make_parameter
from mindpet.delta._host import host_values
from mindpet.delta._shard import shard_methods
from mindpet.delta._state import refuse_merged_training

__all__ = ["IA3Dense"]


class IA3Dense(DeltaDense):
    r"""A dense layer with one trained factor for each output channel, or for each input channel.

    outputs = activation(ia3_scale * (x weight^T + bias)), or, with `feedforward`,

    outputs = activation((ia3_scale * x) weight^T + bias)

    So the bias is scaled in the first form and not in the second, as in PEFT. Only `mindpet_delta_ia3_scale`,
    (out_channels,) or with `feedforward` (in_channels,), is meant to be trained; `freeze_delta(network, 'ia3')` freezes
    the rest. It starts at ones, which change nothing. The factors are applied in float32, as a number near 1 keeps
    three digits in float16 and two in bfloat16.

    The attribute `scaling`, 1 at first, says how much of the change is applied: the factors are 1 + scaling *
    (ia3_scale - 1). Who must change it after the first call assigns a Parameter without gradient there, before that
    call.

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        feedforward (bool): whether the inputs are scaled and not the outputs; the paper does so in the second layer of
            a feed-forward network, whose inputs are the hidden activations. Default: False.
        ia3_init (Union[Tensor, str, Initializer, Number]): how the factors start. Default: 'ones'.
        param_init_type (dtype): the dtype of the factors: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype in which the product runs: float16 (default), float32 or bfloat16.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether there is a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation, by name or itself. Default: None.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: `in_channels` or `out_channels` is no int; `feedforward` or `has_bias` is no bool; `activation` is no
            str, Cell, Primitive or None; an initializer is no Tensor, str, Initializer or number; a dtype is none of
            the three.
        NotPositiveError: `in_channels` or `out_channels` is 0 or negative (a TypeError and a ValueError).
        ValueError: an initializer is a Tensor of the wrong shape or the name of none.
        KeyError: `activation` is a str that names no activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        feedforward: bool = False,
        ia3_init: Any = "ones",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        has_bias: bool = True,
        activation: Any = None,
    ) -> None:
        check_bool("feedforward", feedforward)
        check_dtype("param_init_type", param_init_type)
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, compute_dtype)
        size = in_channels if feedforward else out_channels
        self.mindpet_delta_ia3_scale = make_parameter(
            "ia3_init", ia3_init, (size,), param_init_type, "mindpet_delta_ia3_scale"
        )
        self.feedforward = feedforward
        self.scaling: Any = 1.0
        if feedforward:
            self.input_mul = ops.Mul()
        else:
            self.output_mul = ops.Mul()

    @classmethod
    def from_dense(
        cls,
        dense: nn.Dense,
        feedforward: bool = False,
        ia3_init: Any = "ones",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
    ) -> "IA3Dense":
        """Return a layer that stands in for `dense`: with its own Parameters, primitives, strategies and activation.

        Args:
            dense: the layer to replace; it is left as it is.
            feedforward: as for the class, like the other arguments.
            ia3_init: how the factors start; with the default the result equals `dense` exactly.
            param_init_type: the dtype of the factors.
            compute_dtype: the dtype of the product; None takes the dtype of `dense.weight`.

        Raises:
            TypeError: `dense` is no nn.Dense or computes something of its own; and all that the class raises.
        """
        layer = cls(
            feedforward=feedforward,
            ia3_init=ia3_init,
            param_init_type=param_init_type,
            **cls.base_arguments(dense, compute_dtype),
        )
        layer.take_over(dense)
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        rows = self.to_rows(x)
        if self.feedforward:
            return self.finish(self.base_product(self._scaled(self.input_mul, rows)), x)
        return self.finish(self._scaled(self.output_mul, self.base_product(rows)), x)

    def _scaled(self, mul: ops.Primitive, rows: Tensor) -> Tensor:
        """Return (rows, channels) times the factors of the channels, in the compute dtype."""
        refuse_merged_training(self)
        change = self.cast(self.mindpet_delta_ia3_scale, mstype.float32) - 1.0
        factors = 1.0 + self.scaling * change
        return self.cast(mul(self.cast(rows, mstype.float32), factors), self.compute_dtype)

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the values with which the base layer alone computes what this layer does, by attribute, in float32.

        The weight is multiplied by the factors along its output channels, and with it the bias; with `feedforward` the
        weight alone, along its input channels.
        """
        factors = 1 + host_values(self.scaling) * (host_values(self.mindpet_delta_ia3_scale) - 1)
        weight = host_values(self.weight)
        along_rows = self.feedforward != self.matmul.transpose_b  # a weight is (out, in), or (in, out) untransposed
        merged = {"weight": weight * (factors[:, None] if along_rows else factors)}
        if self.has_bias and not self.feedforward:
            merged["bias"] = host_values(self.bias) * factors
        return merged

    shard, shard_like = shard_methods(
        {
            "strategy_org_dense_matmul": ("matmul", "ni,oi"),
            "strategy_org_bias_add": ("bias_add", "no,o"),
            "strategy_ia3_input_mul": ("input_mul", "ni,i"),
            "strategy_ia3_output_mul": ("output_mul", "no,o"),
            "strategy_activation": ("activation", "no"),
        }
    )
