"""The native formulations: operations of the library that is compiled from `cpp/`, with gradients of their own.

They take float32 tensors on a CPU and are called only where `switch.native_kind` says so. A gradient function returns
an input that is a constant (a frozen weight, a setting) in the place of its gradient, which nobody reads: the callers
below stop gradients there, so that nothing is allocated for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import CustomRegOp, DataType, constexpr

from mindpet.kernels.switch import LIBRARY

__all__ = [
    "attention",
    "dense_frozen",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "lora_dense",
    "rms_norm",
    "rotary",
    "row_losses",
    "silu_gate",
]

_FLOAT = mindspore.float32
_LABELS = {"cross_entropy": 1, "cross_entropy_back": 2}  # the place of the int32 input
_stop = ops.stop_gradient


def _operation(name: str, inputs: int, outputs: int = 1, bprop: Callable[..., Any] | None = None) -> Any:
    """Return an operation of the library on `inputs` tensors; the library knows the shapes of the outputs too.

    Operations of one name must have one `bprop`: within a graph MindSpore takes them for the same.
    """
    description = CustomRegOp(name)
    for place in range(inputs):
        description.input(place, f"input{place}")
    for place in range(outputs):
        description.output(place, f"output{place}")
    dtypes = [DataType.F32_Default] * (inputs + outputs)
    if name in _LABELS:
        dtypes[_LABELS[name]] = DataType.I32_Default
    registered = description.dtype_format(*dtypes).target("CPU").get_op_info()
    return ops.Custom(f"{LIBRARY}:mindpet_{name}", func_type="aot", bprop=bprop, reg_info=registered)


@constexpr
@lru_cache(maxsize=256)
def _constants(*values: float) -> Tensor:
    """Return numbers as a float32 tensor, the only form in which the library takes them."""
    return Tensor(np.array(values, np.float32))


_gelu_back = _operation("gelu_back", 2)
_gelu_tanh_back = _operation("gelu_tanh_back", 2)
_silu_gate_back = _operation("silu_gate_back", 3, 2)


def _gelu_bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
    return (_gelu_back(x, dout),)


def _gelu_tanh_bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
    return (_gelu_tanh_back(x, dout),)


def _silu_gate_bprop(gate: Tensor, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return _silu_gate_back(gate, x, dout)


_gelu = _operation("gelu", 1, bprop=_gelu_bprop)
_gelu_tanh = _operation("gelu_tanh", 1, bprop=_gelu_tanh_bprop)
_silu_gate = _operation("silu_gate", 2, bprop=_silu_gate_bprop)


def gelu(x: Tensor) -> Tensor:
    """As `kernels.gelu`."""
    return _gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """As `kernels.gelu_tanh`."""
    return _gelu_tanh(x)


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    """As `kernels.silu_gate`."""
    return _silu_gate(gate, x)


_layer_norm_back = _operation("layer_norm_back", 4, 3)
_rms_norm_back = _operation("rms_norm_back", 4, 2)


def _layer_norm_bprop(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dx, dgamma, dbeta = _layer_norm_back(dout[0], gamma, out[1], out[2])
    return dx, dgamma, dbeta, epsilon


def _residual_norm_bprop(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: Tensor,
    residual: Tensor,
    out: tuple[Tensor, ...],
    dout: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    dx, dgamma, dbeta = _layer_norm_back(dout[0], gamma, out[1], out[2])
    return dx, dgamma, dbeta, epsilon, dx


def _rms_norm_bprop(
    x: Tensor, gamma: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dx, dgamma = _rms_norm_back(dout[0], x, gamma, out[1])
    return dx, dgamma, epsilon


_layer_norm = _operation("layer_norm", 4, 3, _layer_norm_bprop)
_residual_norm = _operation("layer_norm_residual", 5, 3, _residual_norm_bprop)
_rms_norm = _operation("rms_norm", 3, 2, _rms_norm_bprop)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, residual: Tensor | None) -> Tensor:
    """As `kernels.layer_norm`."""
    scale, shift, constant = gamma.astype(_FLOAT), beta.astype(_FLOAT), _constants(epsilon)
    if residual is None:
        return _layer_norm(x, scale, shift, constant)[0]
    return _residual_norm(x, scale, shift, constant, residual.astype(_FLOAT))[0]


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float) -> Tensor:
    """As `kernels.rms_norm`."""
    return _rms_norm(x, gamma.astype(_FLOAT), _constants(epsilon))[0]


_rotary_back = _operation("rotary_back", 4)


def _rotary_bprop(
    x: Tensor, cosine: Tensor, sine: Tensor, interleaved: Tensor, out: Tensor, dout: Tensor
) -> tuple[Tensor, ...]:
    return _rotary_back(dout, cosine, sine, interleaved), cosine, sine, interleaved


_rotary = _operation("rotary", 4, bprop=_rotary_bprop)


def rotary(x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int, interleaved: bool) -> Tensor:
    """As `kernels.rotary`."""
    batch, length, width = x.shape
    heads = x.reshape((batch, length, num_heads, width // num_heads))
    angles = _stop(cosine.astype(_FLOAT)), _stop(sine.astype(_FLOAT))
    return _rotary(heads, angles[0], angles[1], _constants(float(interleaved))).reshape(x.shape)


_bias_back = _operation("bias_back", 1)


def _dense_operations(suffix: str) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Return the dense layer without bias, with a frozen and with a trained one, and the three with LoRA's branch."""
    dense_back = _operation("dense_back" + suffix, 2)
    lora_back = _operation("lora_back" + suffix, 7, 4)

    def dense_bprop(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight

    def biased_bprop(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight, bias

    def shifted_bprop(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight, _bias_back(dout)

    def lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx, dlora_a, dlora_b, _ = lora_back(dout[0], x, out[1], weight, lora_a, lora_b, scale)
        return dx, weight, dlora_a, dlora_b, scale

    def biased_lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        bias: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx, dlora_a, dlora_b, _ = lora_back(dout[0], x, out[1], weight, lora_a, lora_b, scale)
        return dx, weight, dlora_a, dlora_b, scale, bias

    def shifted_lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        bias: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx, dlora_a, dlora_b, _ = lora_back(dout[0], x, out[1], weight, lora_a, lora_b, scale)
        return dx, weight, dlora_a, dlora_b, scale, _bias_back(dout[0])

    dense = (
        _operation("dense" + suffix, 2, 1, dense_bprop),
        _operation("dense_biased" + suffix, 3, 1, biased_bprop),
        _operation("dense_shifted" + suffix, 3, 1, shifted_bprop),
    )
    lora = (
        _operation("lora" + suffix, 5, 2, lora_bprop),
        _operation("lora_biased" + suffix, 6, 2, biased_lora_bprop),
        _operation("lora_shifted" + suffix, 6, 2, shifted_lora_bprop),
    )
    return dense, lora


(_dense, _biased, _shifted), (_lora, _biased_lora, _shifted_lora) = _dense_operations("")
(_dense_bf16, _biased_bf16, _shifted_bf16), (_lora_bf16, _biased_lora_bf16, _shifted_lora_bf16) = _dense_operations(
    "_bf16"
)


def dense_frozen(x: Tensor, weight: Tensor, bias: Tensor | None, trains_bias: bool, kind: str) -> Tensor:
    """As `kernels.dense_frozen`, with products as `kind` says."""
    frozen = _stop(weight.astype(_FLOAT))
    if bias is None:
        return _dense_bf16(x, frozen) if kind == "bf16" else _dense(x, frozen)
    shift = bias.astype(_FLOAT)
    if trains_bias:
        return _shifted_bf16(x, frozen, shift) if kind == "bf16" else _shifted(x, frozen, shift)
    return _biased_bf16(x, frozen, _stop(shift)) if kind == "bf16" else _biased(x, frozen, _stop(shift))


def lora_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor,
    trains_bias: bool,
    kind: str,
) -> Tensor:
    """As `kernels.lora_dense`, with the frozen product as `kind` says."""
    frozen, factor = _stop(weight.astype(_FLOAT)), _stop(scale.astype(_FLOAT))
    down, up = lora_a.astype(_FLOAT), lora_b.astype(_FLOAT)
    if bias is None:
        with_branch = _lora_bf16 if kind == "bf16" else _lora
        return with_branch(x, frozen, down, up, factor)[0]
    shift = bias.astype(_FLOAT)
    if trains_bias:
        with_branch = _shifted_lora_bf16 if kind == "bf16" else _shifted_lora
        return with_branch(x, frozen, down, up, factor, shift)[0]
    with_branch = _biased_lora_bf16 if kind == "bf16" else _biased_lora
    return with_branch(x, frozen, down, up, factor, _stop(shift))[0]


_attention_back = _operation("attention_back", 7, 3)
_attention_back_masked = _operation("attention_back_masked", 8, 3)


def _attention_bprop(
    query: Tensor, key: Tensor, value: Tensor, settings: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dquery, dkey, dvalue = _attention_back(query, key, value, settings, out[0], out[1], dout[0])
    return dquery, dkey, dvalue, settings


def _masked_attention_bprop(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    settings: Tensor,
    mask: Tensor,
    out: tuple[Tensor, ...],
    dout: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    dquery, dkey, dvalue = _attention_back_masked(query, key, value, settings, mask, out[0], out[1], dout[0])
    return dquery, dkey, dvalue, settings, mask


_attention = _operation("attention", 4, 2, _attention_bprop)
_masked_attention = _operation("attention_masked", 5, 2, _masked_attention_bprop)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, num_heads: int, num_key_heads: int, causal: bool
) -> Tensor:
    """As `kernels.attention` without dropout."""
    batch, queries, width = query.shape
    size = width // num_heads
    heads = query.reshape((batch, queries, num_heads, size))
    key_heads = key.astype(_FLOAT).reshape((batch, key.shape[1], num_key_heads, size))
    value_heads = value.astype(_FLOAT).reshape((batch, key.shape[1], num_key_heads, size))
    settings = _constants(float(causal), size**-0.5)
    if mask is None:
        return _attention(heads, key_heads, value_heads, settings)[0].reshape(query.shape)
    hiding = _stop(mask.astype(_FLOAT))
    return _masked_attention(heads, key_heads, value_heads, settings, hiding)[0].reshape(query.shape)


_row_losses_back = _operation("cross_entropy_back", 4)


def _row_losses_bprop(
    logits: Tensor, labels: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return _row_losses_back(dout[0], logits, labels, out[1]), labels


_row_losses = _operation("cross_entropy", 2, 2, _row_losses_bprop)


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` of each row, 0 where the label is -1; another wrong label is an error."""
    return _row_losses(logits, labels.astype(mindspore.int32))[0]
