"""LoRA on a convolution: one to few channels, then one that sees a single pixel (arXiv:2106.09685)."""

import math
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import HeUniform

from mindpet.delta._checks import check_float_rate, check_multiple, check_plain, check_positive_int
from mindpet.delta._host import host_values
from mindpet.delta._low_rank import add_factors, check_factors, name_beside
from mindpet.delta._state import refuse_merged_training
from mindpet.utils.exceptions import InputError
from mindpet.utils.version_control import get_dropout

__all__ = ["LoRAConv2d"]


class LoRAConv2d(nn.Conv2d):
    r"""A convolution with a LoRA branch.

    outputs = x * weight + bias + lora_alpha / lora_rank * (dropout(x) * lora_a) * lora_b, where * between tensors is
    the convolution.

    lora_a (lora_rank, in_channels, height, width) slides as the weight does, with its stride, padding and dilation, but
    over all input channels; lora_b (out_channels, lora_rank / group, 1, 1) has the weight's groups. These are PEFT's
    shapes, and its numbers where the dilation is 1 (PEFT leaves the dilation out). Only these two,
    `mindpet_delta_lora_a` and `mindpet_delta_lora_b`, are meant to be trained; `freeze_delta(network, 'lora')` freezes
    the rest. With the default `lora_b_init` the branch is zero at first. The scale is the attribute `scaling`, as in
    LoRADense.

    Args:
        in_channels (int): the number of channels of the input.
        out_channels (int): the number of channels of the output.
        kernel_size (Union[int, tuple[int]]): height and width of the kernel.
        lora_rank (int): the number of channels between lora_a and lora_b, a multiple of `group`.
        lora_alpha (Union[int, float]): the numerator of the scale, not 0.
        lora_dropout (float): the rate at which the branch drops its input in training, in [0, 1). Default: 0.0.
        lora_a_init (Union[Tensor, str, Initializer, Number]): how lora_a starts.
            Default: HeUniform(negative_slope=math.sqrt(5)).
        lora_b_init (Union[Tensor, str, Initializer, Number]): how lora_b starts. Default: 'zeros'.
        param_init_type (dtype): the dtype of lora_a and lora_b: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype of all convolutions: float32 (default), float16 or bfloat16.
        stride (Union[int, tuple[int]]): as for nn.Conv2d, like the arguments after it. Default: 1.
        pad_mode (str): 'same' (default), 'valid' or 'pad'.
        padding (Union[int, tuple[int]]): with 'pad', the rows and columns around the input. Default: 0.
        dilation (Union[int, tuple[int]]): the distance between the kernel's elements. Default: 1.
        group (int): the number of groups of channels. Default: 1.
        has_bias (bool): whether there is a bias. Default: False.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: None, HeUniform(sqrt(5)).
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: None, uniform.

    Inputs:
        - **x** (Tensor) - of shape (batch, in_channels, height, width), with a floating dtype.

    Outputs:
        Tensor of shape (batch, out_channels, height, width), in the dtype of `x`.

    Raises:
        TypeError: `lora_rank` is no int; `lora_alpha` is no int or float; `lora_dropout` is no float; an initializer is
            no Tensor, str, Initializer or number; a dtype is none of the three.
        NotPositiveError: `lora_rank` is 0 or negative (a TypeError and a ValueError).
        ValueError: `lora_rank` is no multiple of `group`; `lora_alpha` is 0, NaN or infinite; `lora_dropout` lies
            outside [0, 1); an initializer is a Tensor of the wrong shape or the name of none.
    """

    merged = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        lora_rank: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        lora_a_init: Any = HeUniform(negative_slope=math.sqrt(5)),  # noqa: B008
        lora_b_init: Any = "zeros",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float32,
        stride: int | tuple[int, int] = 1,
        pad_mode: str = "same",
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, int] = 1,
        group: int = 1,
        has_bias: bool = False,
        weight_init: Any = None,
        bias_init: Any = None,
    ) -> None:
        check_factors(lora_rank, lora_alpha, param_init_type, compute_dtype)
        check_float_rate("lora_dropout", lora_dropout)
        check_positive_int("group", group)
        check_multiple("lora_rank", lora_rank, "group", group)
        sliding = {"stride": stride, "pad_mode": pad_mode, "padding": padding, "dilation": dilation}
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            **sliding,
            group=group,
            has_bias=has_bias,
            weight_init=weight_init,
            bias_init=bias_init,
        )
        add_factors(
            self,
            lora_rank,
            lora_alpha,
            (lora_a_init, (lora_rank, in_channels, *self.kernel_size)),
            (lora_b_init, (out_channels, lora_rank // group, 1, 1)),
            param_init_type,
        )
        self.compute_dtype = compute_dtype
        self.lora_dropout = get_dropout(lora_dropout)
        self.lora_a_conv2d = ops.Conv2D(
            lora_rank,
            self.kernel_size,
            pad_mode=self.pad_mode,
            pad=self.padding,
            stride=self.stride,
            dilation=self.dilation,
        )
        self.lora_b_conv2d = ops.Conv2D(out_channels, 1, group=group)
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.cast = ops.Cast()

    @classmethod
    def from_conv2d(
        cls,
        conv2d: nn.Conv2d,
        lora_rank: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        lora_a_init: Any = HeUniform(negative_slope=math.sqrt(5)),  # noqa: B008
        lora_b_init: Any = "zeros",
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
    ) -> "LoRAConv2d":
        """Return a convolution that stands in for `conv2d`, with its own Parameters and primitives.

        Args:
            conv2d: the convolution to replace, with channels before height and width; it is left as it is.
            lora_rank: as for the class, like the other arguments.
            lora_alpha: the numerator of the scale.
            lora_dropout: the rate of the branch's dropout.
            lora_a_init: how lora_a starts.
            lora_b_init: how lora_b starts; with the default the result equals `conv2d` exactly.
            param_init_type: the dtype of lora_a and lora_b.
            compute_dtype: the dtype of all convolutions; None takes the dtype of the weight.

        Raises:
            TypeError: `conv2d` is no nn.Conv2d or computes something of its own; and all that the class raises.
            ValueError: its channels come last; and all that the class raises.
        """
        check_plain("conv2d", conv2d, nn.Conv2d)
        if conv2d.data_format != "NCHW":
            raise ValueError(
                f"`conv2d` has the data format {conv2d.data_format}; accepted is NCHW. Build the network with it."
            )
        layer = cls(
            conv2d.in_channels,
            conv2d.out_channels,
            conv2d.kernel_size,
            lora_rank,
            lora_alpha,
            lora_dropout,
            lora_a_init,
            lora_b_init,
            param_init_type,
            conv2d.weight.dtype if compute_dtype is None else compute_dtype,
            conv2d.stride,
            conv2d.pad_mode,
            conv2d.padding,
            conv2d.dilation,
            conv2d.group,
            conv2d.has_bias,
            "zeros",
            "zeros",
        )
        name_beside(layer, conv2d.weight)
        names = [(parameter, parameter.name) for parameter in conv2d.get_parameters()]
        for attribute in ("weight", "conv2d", *(("bias", "bias_add") if conv2d.has_bias else ())):
            setattr(layer, attribute, getattr(conv2d, attribute))
        for parameter, name in names:
            parameter.name = name
        layer.set_train(conv2d.training)
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (batch, in_channels, height, width)."""
        pixels = self.cast(x, self.compute_dtype)
        output = self.conv2d(pixels, self.cast(self.weight, self.compute_dtype))
        if self.has_bias:
            output = self.bias_add(output, self.cast(self.bias, self.compute_dtype))
        return self.cast(self.add(output, self.branch(pixels)), x.dtype)

    def branch(self, pixels: Tensor) -> Tensor:
        """Return scaling * (dropout(pixels) * lora_a) * lora_b, in the shape of the layer's output."""
        refuse_merged_training(self)
        lora_a = self.cast(self.mindpet_delta_lora_a, self.compute_dtype)
        lora_b = self.cast(self.mindpet_delta_lora_b, self.compute_dtype)
        hidden = self.lora_a_conv2d(self.lora_dropout(pixels), lora_a)  # (batch, lora_rank, height, width)
        return self.mul(self.lora_b_conv2d(hidden, lora_b), self.cast(self.scaling, self.compute_dtype))

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the weight with which the base alone computes what this layer does, by attribute, in float32.

        That is weight + scaling * sum over r of lora_b[:, r] lora_a[r], computed on the host.

        Raises:
            InputError: there are several groups: lora_a sees all channels, and the weight only those of its group.
        """
        if self.group > 1:
            raise InputError(
                f"a convolution of {self.group} groups cannot be merged: its LoRA branch sees all channels, as PEFT's "
                "does, and its weight only those of one group. Keep the branch, or adapt layers of one group only."
            )
        lora_b = host_values(self.mindpet_delta_lora_b)[:, :, 0, 0]
        change = np.einsum("or,rihw->oihw", lora_b, host_values(self.mindpet_delta_lora_a))
        return {"weight": host_values(self.weight) + host_values(self.scaling) * change}
