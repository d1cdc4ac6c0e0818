"""Low-rank adapters: the two projections of an adapter, each a product of two thin matrices (arXiv:2106.04647)."""

from typing import Any

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._activations import ACTIVATIONS
from mindpet.delta._bottleneck import BottleneckLayer
from mindpet.delta._checks import (
    check_bool,
    check_dtype,
    check_not_above,
    check_positive_int,
    check_weight_initializer,
)
from mindpet.delta._dense import DeltaDense, make_parameter, replace_parameter
from mindpet.delta._shard import shard_methods, within

__all__ = ["LowRankAdapterDense", "LowRankAdapterLayer", "LowRankLinear"]


class LowRankLinear(nn.Cell):
    """x (weight_left weight_right) + bias, a linear map whose matrix has rank `rank`.

    The parameters are `mindpet_delta_low_rank_adapter_weight_left` (in_channels, rank),
    `mindpet_delta_low_rank_adapter_weight_right` (rank, out_channels) and `bias` (out_channels,). In the parallel modes
    each device computes the whole product of the thin factors, unless `shard` is given a strategy for it: the product
    has no batch to split, and to bring its parts together would cost more than it saves.

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        rank (int): the inner size of the two factors. Default: 1.
        weight_init (Union[str, Initializer]): how both factors start. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether there is a bias. Default: True.
        param_init_type (dtype): the dtype of the parameters: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype of the products: float16 (default), float32 or bfloat16.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels).

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: an argument has the wrong type.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: an initializer is the name of none, or a Tensor of the wrong shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        rank: int = 1,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        has_bias: bool = True,
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
    ) -> None:
        check_positive_int("in_channels", in_channels)
        check_positive_int("out_channels", out_channels)
        check_positive_int("rank", rank)
        check_weight_initializer("weight_init", weight_init)
        check_bool("has_bias", has_bias)
        check_dtype("param_init_type", param_init_type)
        check_dtype("compute_dtype", compute_dtype)
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.rank = rank
        self.mindpet_delta_low_rank_adapter_weight_left = make_parameter(
            "weight_init",
            weight_init,
            (in_channels, rank),
            param_init_type,
            "mindpet_delta_low_rank_adapter_weight_left",
        )
        self.mindpet_delta_low_rank_adapter_weight_right = make_parameter(
            "weight_init",
            weight_init,
            (rank, out_channels),
            param_init_type,
            "mindpet_delta_low_rank_adapter_weight_right",
        )
        bias = make_parameter("bias_init", bias_init, (out_channels,), param_init_type, "bias")
        self.has_bias = has_bias
        self.bias = bias if has_bias else None
        self.bias_add = ops.BiasAdd()
        self.compute_dtype = compute_dtype
        # The product of the factors has no batch; without a strategy, data parallelism would cut its left factor.
        self.matmul_weight = ops.MatMul().shard(((1, 1), (1, 1)))
        self.matmul_input = ops.MatMul()
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()
        self.shape_op = ops.Shape()

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        shape = self.shape_op(x)
        rows = self.reshape(x, (-1, shape[-1])) if len(shape) != 2 else x
        left = self.cast(self.mindpet_delta_low_rank_adapter_weight_left, self.compute_dtype)
        right = self.cast(self.mindpet_delta_low_rank_adapter_weight_right, self.compute_dtype)
        output = self.matmul_input(self.cast(rows, self.compute_dtype), self.matmul_weight(left, right))
        if self.has_bias:
            output = self.bias_add(output, self.cast(self.bias, self.compute_dtype))
        if len(shape) != 2:
            output = self.reshape(output, shape[:-1] + (self.out_channels,))  # noqa: RUF005, graph mode knows only +
        return self.cast(output, x.dtype)

    # i and o are here the channels of this map itself.
    shard, shard_like = shard_methods(
        {
            "strategy_matmul_weight": ("matmul_weight", "--,--"),
            "strategy_matmul_input": ("matmul_input", "ni,io"),
            "strategy_bias": ("bias_add", "no,o"),
        }
    )


_LAYER_TARGETS = {
    "strategy_matmul_down_sampler_weight": ("mindpet_delta_low_rank_adapter_down_sampler.matmul_weight", "--,--"),
    "strategy_matmul_down_sampler_input": ("mindpet_delta_low_rank_adapter_down_sampler.matmul_input", "no,ob"),
    "strategy_bias_down_sampler": ("mindpet_delta_low_rank_adapter_down_sampler.bias_add", "nb,b"),
    "strategy_non_linearity": ("mindpet_delta_low_rank_adapter_non_linear", "nb"),
    "strategy_matmul_up_sampler_weight": ("mindpet_delta_low_rank_adapter_up_sampler.matmul_weight", "--,--"),
    "strategy_matmul_up_sampler_input": ("mindpet_delta_low_rank_adapter_up_sampler.matmul_input", "nb,bo"),
    "strategy_bias_up_sampler": ("mindpet_delta_low_rank_adapter_up_sampler.bias_add", "no,o"),
    "strategy_residual_add": ("residual_add", "no,no"),
}


class LowRankAdapterLayer(BottleneckLayer):
    r"""An adapter whose two projections are products of two thin matrices.

    output = x + non_linearity(x W_down + b_down) W_up + b_up, with W_down = left_down right_down of shape
    (hidden_size, k), W_up = left_up right_up of shape (k, hidden_size) and k = hidden_size // reduction_factor.

    The parameters are `mindpet_delta_low_rank_adapter_weight_left`, `mindpet_delta_low_rank_adapter_weight_right` and
    `bias` of the cells `mindpet_delta_low_rank_adapter_down_sampler` and `mindpet_delta_low_rank_adapter_up_sampler`.

    Args:
        hidden_size (int): the size of the last axis of input and output.
        reduction_factor (int): by how much the bottleneck is narrower, at most `hidden_size`. Default: 1.
        low_rank_size (int): the inner size of the thin matrices. Default: 1.
        low_rank_w_init (Union[str, Initializer]): how the four matrices start. Default: 'xavier_uniform'.
        non_linearity (str): the name of the activation in the bottleneck. Default: 'gelu', in its tanh form.
        param_init_type (dtype): the dtype of the parameters: float32 (default), float16 or, as an extension, bfloat16.
        compute_dtype (dtype): the dtype in which the bottleneck computes: float16 (default), float32 or, as an
            extension, bfloat16.

    Inputs:
        - **x** (Tensor) - of shape (*, hidden_size), with a floating dtype.

    Outputs:
        Tensor of shape (*, hidden_size), in the dtype of `x`.

    Raises:
        TypeError: a size is no int; `low_rank_w_init` is no str or Initializer; `non_linearity` is no str; a dtype is
            none of the three.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: `low_rank_w_init` or `non_linearity` names nothing; `reduction_factor` exceeds `hidden_size`.
    """

    def __init__(
        self,
        hidden_size: int,
        reduction_factor: int = 1,
        low_rank_size: int = 1,
        low_rank_w_init: Any = "xavier_uniform",
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
    ) -> None:
        check_positive_int("hidden_size", hidden_size)
        check_positive_int("reduction_factor", reduction_factor)
        check_positive_int("low_rank_size", low_rank_size)
        check_weight_initializer("low_rank_w_init", low_rank_w_init)
        check_not_above("reduction_factor", reduction_factor, "hidden_size", hidden_size)
        super().__init__(non_linearity, param_init_type, compute_dtype)
        self.bottleneck_size = hidden_size // reduction_factor
        shared = {
            "rank": low_rank_size,
            "weight_init": low_rank_w_init,
            "param_init_type": param_init_type,
            "compute_dtype": compute_dtype,
        }
        self.mindpet_delta_low_rank_adapter_down_sampler = LowRankLinear(hidden_size, self.bottleneck_size, **shared)
        self.mindpet_delta_low_rank_adapter_non_linear = ACTIVATIONS[non_linearity]()
        self.mindpet_delta_low_rank_adapter_up_sampler = LowRankLinear(self.bottleneck_size, hidden_size, **shared)

    def bottleneck(self, rows: Tensor) -> Tensor:
        """Return non_linearity(rows W_down + b_down) W_up + b_up."""
        hidden = self.mindpet_delta_low_rank_adapter_down_sampler(rows)
        return self.mindpet_delta_low_rank_adapter_up_sampler(self.mindpet_delta_low_rank_adapter_non_linear(hidden))

    shard, shard_like = shard_methods(_LAYER_TARGETS)


class LowRankAdapterDense(DeltaDense):
    r"""A dense layer followed by a low-rank adapter: LowRankAdapterLayer(activation(x weight^T + bias)).

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether the dense layer has a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation of the dense layer. Default: None.
        reduction_factor (int): by how much the bottleneck is narrower, at most `out_channels`. Default: 1.
        low_rank_size (int): the inner size of the thin matrices. Default: 1.
        low_rank_w_init (Union[str, Initializer]): how the four matrices start. Default: 'xavier_uniform'.
        non_linearity (str): the name of the activation in the bottleneck. Default: 'gelu', in its tanh form.
        param_init_type (dtype): the dtype of the adapter's parameters: float32 (default), float16 or, as an extension,
            bfloat16.
        compute_dtype (dtype): the dtype of all products: float16 (default), float32 or, as an extension, bfloat16.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: a size is no int; `has_bias` is no bool; `activation` is no str, Cell, Primitive or None;
            `weight_init` or `bias_init` is no Tensor, str, Initializer or number; `low_rank_w_init` is no str or
            Initializer; `non_linearity` is no str; a dtype is none of the three.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: an initializer is the name of none or a Tensor of the wrong shape; `non_linearity` names no
            activation; `reduction_factor` exceeds `out_channels`.
        KeyError: `activation` is a str that names no activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        has_bias: bool = True,
        activation: Any = None,
        reduction_factor: int = 1,
        low_rank_size: int = 1,
        low_rank_w_init: Any = "xavier_uniform",
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
    ) -> None:
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, compute_dtype)
        self.mindpet_delta_low_rank_adapter = LowRankAdapterLayer(
            out_channels,
            reduction_factor,
            low_rank_size,
            low_rank_w_init,
            non_linearity,
            param_init_type,
            compute_dtype,
        )

    @classmethod
    def from_dense(
        cls,
        dense: nn.Dense,
        reduction_factor: int = 1,
        low_rank_size: int = 1,
        low_rank_w_init: Any = "xavier_uniform",
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
        up_init: Any = "zeros",
    ) -> "LowRankAdapterDense":
        """Return a layer that stands in for `dense`: with its own Parameters, primitives, strategies and activation.

        Args:
            dense: the layer to replace; it is left as it is.
            reduction_factor: as for the class, like the next four arguments.
            low_rank_size: the inner size of the thin matrices.
            low_rank_w_init: how the matrices start.
            non_linearity: the activation in the bottleneck.
            param_init_type: the dtype of the adapter's parameters.
            compute_dtype: the dtype of all products; None takes the dtype of `dense.weight`.
            up_init: how the right matrix of the up-projection starts instead, a str or Initializer; with the default
                the result equals `dense` exactly. Training moves this matrix first.

        Raises:
            TypeError: `dense` is no nn.Dense or computes something of its own; and all that the class raises.
        """
        layer = cls(
            reduction_factor=reduction_factor,
            low_rank_size=low_rank_size,
            low_rank_w_init=low_rank_w_init,
            non_linearity=non_linearity,
            param_init_type=param_init_type,
            **cls.base_arguments(dense, compute_dtype),
        )
        up = layer.mindpet_delta_low_rank_adapter.mindpet_delta_low_rank_adapter_up_sampler
        replace_parameter(up, "mindpet_delta_low_rank_adapter_weight_right", "up_init", up_init)
        layer.take_over(dense)
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        return self.mindpet_delta_low_rank_adapter(self.dense_output(x))

    shard, shard_like = shard_methods(
        {
            "strategy_matmul_org": ("matmul", "ni,oi"),
            "strategy_bias_org": ("bias_add", "no,o"),
            "strategy_activation_org": ("activation", "no"),
            **within("mindpet_delta_low_rank_adapter", _LAYER_TARGETS),
        }
    )
