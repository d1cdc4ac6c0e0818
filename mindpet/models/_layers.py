"""MindSpore's own layers with their parameters and names, computing through the kernels."""

from collections.abc import Callable
from typing import Any

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, initializer

from mindpet import kernels

__all__ = ["ACTIVATIONS", "HIDDEN", "Dense", "LayerNorm", "RMSNorm", "additive_mask", "first_rows", "starting_weights"]

# By the names of transformers, which has several for each of the two forms of GELU.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": kernels.gelu,
    "gelu_python": kernels.gelu,
    "gelu_new": kernels.gelu_tanh,
    "gelu_fast": kernels.gelu_tanh,
    "gelu_accurate": kernels.gelu_tanh,
    "gelu_pytorch_tanh": kernels.gelu_tanh,
    "gelu_python_tanh": kernels.gelu_tanh,
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": kernels.tanh,
}

# Operators of tensors are several functions each to compile; these are single operations.
_cast, _subtract, _multiply, _add_axis = ops.Cast(), ops.Sub(), ops.Mul(), ops.ExpandDims()
_take_first = ops.StridedSlice(begin_mask=1, end_mask=1, shrink_axis_mask=2)
_ONE = Tensor(1.0, mindspore.float32)
HIDDEN = -1e4  # added to the score of a hidden key; the softmax then gives exactly 0, in float16 too
_HIDDEN = Tensor(HIDDEN, mindspore.float32)


def additive_mask(attention_mask: Tensor) -> Tensor:
    """Turn a mask (batch, length), 1 for a token, into one (batch, 1, 1, length) that is added to scores."""
    mask = _multiply(_subtract(_ONE, _cast(attention_mask, mindspore.float32)), _HIDDEN)
    return _add_axis(_add_axis(mask, 1), 1)


def first_rows(hidden: Tensor) -> Tensor:
    """Return the first position of each text, (batch, hidden) in float32, of (batch, length, hidden)."""
    return _cast(_take_first(hidden, (0, 0), (0, 1), (1, 1)), mindspore.float32)


class Dense(nn.Dense):
    """`nn.Dense` that follows its input's dtype; weights normal with the given spread, biases zero."""

    computes_as_dense = True

    def __init__(self, inputs: int, outputs: int, spread: float, has_bias: bool = True) -> None:
        super().__init__(inputs, outputs, weight_init=starting_weights(spread), bias_init="zeros", has_bias=has_bias)

    def construct(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs) in the dtype of `x`."""
        return kernels.dense(x, self.weight, self.bias)


class _Norm:
    """What a graph takes as a constant: of a class that is no Cell, MindSpore evaluates a property."""

    @property
    def trains_scale(self: Any) -> bool:
        """Whether one of the cell's own parameters is trained."""
        return any(parameter.requires_grad for parameter in self.get_parameters())


class LayerNorm(_Norm, nn.LayerNorm):
    """`nn.LayerNorm` over the last axis with statistics in float32 and the dtype of its input."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__((width,), epsilon=epsilon)

    def construct(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise (..., width), the sum of `x` and a residual of its shape where one is given."""
        return kernels.layer_norm(x, self.gamma, self.beta, self.epsilon, residual, self.trains_scale)


class RMSNorm(_Norm, nn.Cell):
    """The last axis divided by its root mean square, with the mean in float32 and the dtype of its input."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = Parameter(initializer("ones", (width,)), name="weight")

    def construct(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise (..., width); with a residual of its shape, return the normalised sum of both and the sum."""
        if residual is None:
            return kernels.rms_norm(x, self.weight, self.epsilon, self.trains_scale)
        return kernels.add_rms_norm(x, residual, self.weight, self.epsilon, self.trains_scale)


def starting_weights(spread: float) -> Initializer | str:
    """Return the initializer of weights with standard deviation `spread`; zeros cost nothing where files fill them."""
    return Normal(spread) if spread else "zeros"
