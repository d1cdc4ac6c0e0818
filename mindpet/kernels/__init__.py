"""The hot operations, one function each, callable inside `construct` in graph mode and in PyNative mode."""

from mindpet.kernels.plain import (
    IGNORED_LABEL,
    attention,
    cross_entropy,
    dense,
    gelu,
    gelu_tanh,
    layer_norm,
    tanh,
)

__all__ = ["IGNORED_LABEL", "attention", "cross_entropy", "dense", "gelu", "gelu_tanh", "layer_norm", "tanh"]
