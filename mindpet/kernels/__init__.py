"""The hot operations, one function each, callable inside `construct` in graph mode and in PyNative mode."""

from mindpet.kernels.operations import (
    IGNORED_LABEL,
    add_rms_norm,
    attention,
    cross_entropy,
    dense,
    dense_frozen,
    dense_trained,
    gelu,
    gelu_tanh,
    layer_norm,
    lora_dense,
    rms_norm,
    rotary,
    silu_gate,
    tanh,
)
from mindpet.kernels.switch import describe_kernels, kernels_in_use, possible_kernels, use_kernels

__all__ = [
    "IGNORED_LABEL",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "dense",
    "dense_frozen",
    "dense_trained",
    "describe_kernels",
    "gelu",
    "gelu_tanh",
    "kernels_in_use",
    "layer_norm",
    "lora_dense",
    "possible_kernels",
    "rms_norm",
    "rotary",
    "silu_gate",
    "tanh",
    "use_kernels",
]
