"""Adapters: a small bottleneck with a residual connection, after a dense layer (arXiv:1902.00751)."""

from collections import OrderedDict
from typing import Any

from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta._activations import ACTIVATIONS
from mindpet.delta._bottleneck import BottleneckLayer
from mindpet.delta._checks import check_positive_int
from mindpet.delta._dense import DeltaDense, replace_parameter
from mindpet.delta._shard import shard_methods, within
from mindpet.delta.low_rank_adapter import LowRankAdapterDense, LowRankAdapterLayer, LowRankLinear

__all__ = ["AdapterDense", "AdapterLayer", "LowRankAdapterDense", "LowRankAdapterLayer", "LowRankLinear"]

_LAYER_TARGETS = within(
    "mindpet_delta_adapter_block",
    {
        "strategy_matmul_down_sampler": ("mindpet_delta_adapter_down_sampler.matmul", "no,bo"),
        "strategy_bias_down_sampler": ("mindpet_delta_adapter_down_sampler.bias_add", "nb,b"),
        "strategy_non_linearity": ("mindpet_delta_adapter_non_linear", "nb"),
        "strategy_matmul_up_sampler": ("mindpet_delta_adapter_up_sampler.matmul", "nb,ob"),
        "strategy_bias_up_sampler": ("mindpet_delta_adapter_up_sampler.bias_add", "no,o"),
    },
) | {"strategy_residual_add": ("residual_add", "no,no")}


class AdapterLayer(BottleneckLayer):
    """A bottleneck with a residual connection.

    output = x + non_linearity(x W_down^T + b_down) W_up^T + b_up

    The parameters are `weight` and `bias` of the cells `mindpet_delta_adapter_down_sampler` (bottleneck_size,
    hidden_size) and `mindpet_delta_adapter_up_sampler` (hidden_size, bottleneck_size) in the cell
    `mindpet_delta_adapter_block`. Both weights start from a normal distribution of deviation 0.01, the biases at zero.

    Args:
        hidden_size (int): the size of the last axis of input and output.
        bottleneck_size (int): the size of the bottleneck. Default: 64.
        non_linearity (str): the name of the activation in the bottleneck. Default: 'gelu', in its tanh form.
        param_init_type (dtype): the dtype of the parameters: float32 (default), float16 or, as an extension, bfloat16.
        compute_dtype (dtype): the dtype in which the bottleneck computes: float16 (default), float32 or, as an
            extension, bfloat16.

    Inputs:
        - **x** (Tensor) - of shape (*, hidden_size), with a floating dtype.

    Outputs:
        Tensor of shape (*, hidden_size), in the dtype of `x`.

    Raises:
        TypeError: a size is no int; `non_linearity` is no str; a dtype is none of the three.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: `non_linearity` names no activation.
    """

    def __init__(
        self,
        hidden_size: int,
        bottleneck_size: int = 64,
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
    ) -> None:
        check_positive_int("hidden_size", hidden_size)
        check_positive_int("bottleneck_size", bottleneck_size)
        super().__init__(non_linearity, param_init_type, compute_dtype)
        self.bottleneck_size = bottleneck_size
        start = ("normal", "zeros", True, None, compute_dtype, param_init_type)
        self.mindpet_delta_adapter_block = nn.SequentialCell(
            OrderedDict(
                mindpet_delta_adapter_down_sampler=DeltaDense(hidden_size, bottleneck_size, *start),
                mindpet_delta_adapter_non_linear=ACTIVATIONS[non_linearity](),
                mindpet_delta_adapter_up_sampler=DeltaDense(bottleneck_size, hidden_size, *start),
            )
        )

    def bottleneck(self, rows: Tensor) -> Tensor:
        """Return non_linearity(rows W_down^T + b_down) W_up^T + b_up."""
        return self.mindpet_delta_adapter_block(rows)

    shard, shard_like = shard_methods(_LAYER_TARGETS)


class AdapterDense(DeltaDense):
    """A dense layer followed by an adapter: AdapterLayer(activation(x weight^T + bias)).

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether the dense layer has a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation of the dense layer. Default: None.
        bottleneck_size (int): the size of the bottleneck. Default: 64.
        non_linearity (str): the name of the activation in the bottleneck. Default: 'gelu', in its tanh form.
        param_init_type (dtype): the dtype of the adapter's parameters: float32 (default), float16 or, as an extension,
            bfloat16.
        compute_dtype (dtype): the dtype of all products: float16 (default), float32 or, as an extension, bfloat16.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: a size is no int; `has_bias` is no bool; `activation` is no str, Cell, Primitive or None; an
            initializer is no Tensor, str, Initializer or number; `non_linearity` is no str; a dtype is none of the
            three.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: an initializer is the name of none or a Tensor of the wrong shape; `non_linearity` names no
            activation.
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
        bottleneck_size: int = 64,
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
    ) -> None:
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, compute_dtype)
        self.bottleneck_size = bottleneck_size
        self.mindpet_delta_adapter = AdapterLayer(
            out_channels, bottleneck_size, non_linearity, param_init_type, compute_dtype
        )

    @classmethod
    def from_dense(
        cls,
        dense: nn.Dense,
        bottleneck_size: int = 64,
        non_linearity: str = "gelu",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
        up_init: Any = "zeros",
    ) -> "AdapterDense":
        """Return a layer that stands in for `dense`: with its own Parameters, primitives, strategies and activation.

        Args:
            dense: the layer to replace; it is left as it is.
            bottleneck_size: as for the class, like the next two arguments.
            non_linearity: the activation in the bottleneck.
            param_init_type: the dtype of the adapter's parameters.
            compute_dtype: the dtype of all products; None takes the dtype of `dense.weight`.
            up_init: how the weight of the up-projection starts instead; with the default the result equals `dense`
                exactly.

        Raises:
            TypeError: `dense` is no nn.Dense or computes something of its own; and all that the class raises.
        """
        layer = cls(
            bottleneck_size=bottleneck_size,
            non_linearity=non_linearity,
            param_init_type=param_init_type,
            **cls.base_arguments(dense, compute_dtype),
        )
        block = layer.mindpet_delta_adapter.mindpet_delta_adapter_block
        replace_parameter(block.mindpet_delta_adapter_up_sampler, "weight", "up_init", up_init)
        layer.take_over(dense)
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        return self.mindpet_delta_adapter(self.dense_output(x))

    shard, shard_like = shard_methods(
        {
            "strategy_matmul_org": ("matmul", "ni,oi"),
            "strategy_bias_org": ("bias_add", "no,o"),
            "strategy_activation_org": ("activation", "no"),
            **within("mindpet_delta_adapter", _LAYER_TARGETS),
        }
    )
