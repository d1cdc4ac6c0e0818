"""MindSpore's own layers with their parameters and names, computing through the kernels."""

from collections.abc import Callable
from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, initializer

from mindpet import kernels

__all__ = ["ACTIVATIONS", "Dense", "LayerNorm", "RMSNorm", "starting_weights"]

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
