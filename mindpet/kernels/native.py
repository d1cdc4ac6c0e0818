"""The native formulations: operations of the library that is compiled from `cpp/`, with gradients of their own.

They take float32 tensors on a CPU and are called only where `switch.native_kind` says so. With the kernels 'bf16' most
of what only a gradient needs is kept rounded to bfloat16, two numbers in the room of a float32, never to be read as
such. A gradient function returns an input that is a constant (a frozen weight, a setting) in the place of its gradient,
which nobody reads: the callers below stop gradients there, so that nothing is allocated for it.
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
    "add_rms_norm",
    "attention",
    "constants",
    "dense_frozen",
    "dense_trained",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "lora_dense",
    "operation",
    "rms_norm",
    "rotary",
    "row_losses",
    "silu_gate",
]

_FLOAT = mindspore.float32
_LABELS = {"cross_entropy": 1, "cross_entropy_back": 2}  # the place of the int32 input
_stop = ops.stop_gradient
_cast = ops.Cast()  # Tensor.astype is several functions to compile


def operation(name: str, inputs: int, outputs: int = 1, bprop: Callable[..., Any] | None = None) -> Any:
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
def constants(*values: float) -> Tensor:
    """Return numbers as a float32 tensor, the only form in which the library takes them."""
    return Tensor(np.array(values, np.float32))


_gelu_back = operation("gelu_back", 2)
_gelu_back_bf16 = operation("gelu_back_bf16", 2)
_gelu_tanh_back = operation("gelu_tanh_back", 2)
_gelu_tanh_back_bf16 = operation("gelu_tanh_back_bf16", 2)
_silu_gate_back = operation("silu_gate_back", 3, 2)
_silu_gate_back_bf16 = operation("silu_gate_back_bf16", 3, 2)


def _gelu_bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
    return (_gelu_back(x, dout),)


def _gelu_bf16_bprop(x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (_gelu_back_bf16(out[1], dout[0]),)


def _gelu_tanh_bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
    return (_gelu_tanh_back(x, dout),)


def _gelu_tanh_bf16_bprop(x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (_gelu_tanh_back_bf16(out[1], dout[0]),)


def _silu_gate_bprop(gate: Tensor, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return _silu_gate_back(gate, x, dout)


def _silu_gate_bf16_bprop(
    gate: Tensor, x: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    return _silu_gate_back_bf16(out[1], out[2], dout[0])


_gelu = operation("gelu", 1, bprop=_gelu_bprop)
_gelu_bf16 = operation("gelu_bf16", 1, 2, _gelu_bf16_bprop)
_gelu_tanh = operation("gelu_tanh", 1, bprop=_gelu_tanh_bprop)
_gelu_tanh_bf16 = operation("gelu_tanh_bf16", 1, 2, _gelu_tanh_bf16_bprop)
_silu_gate = operation("silu_gate", 2, bprop=_silu_gate_bprop)
_silu_gate_bf16 = operation("silu_gate_bf16", 2, 3, _silu_gate_bf16_bprop)


def gelu(x: Tensor, kind: str) -> Tensor:
    """As `kernels.gelu`."""
    return _gelu_bf16(x)[0] if kind == "bf16" else _gelu(x)


def gelu_tanh(x: Tensor, kind: str) -> Tensor:
    """As `kernels.gelu_tanh`."""
    return _gelu_tanh_bf16(x)[0] if kind == "bf16" else _gelu_tanh(x)


def silu_gate(gate: Tensor, x: Tensor, kind: str) -> Tensor:
    """As `kernels.silu_gate`."""
    return _silu_gate_bf16(gate, x)[0] if kind == "bf16" else _silu_gate(gate, x)


def _layer_norm_operations(suffix: str) -> tuple[Any, Any]:
    """Return LayerNorm without and with a residual, whose gamma and beta are trained."""
    back = operation("layer_norm_back" + suffix, 4, 3)

    def bprop(
        x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        dx, dgamma, dbeta = back(dout[0], gamma, out[1], out[2])
        return dx, dgamma, dbeta, epsilon

    def residual_bprop(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        epsilon: Tensor,
        residual: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx, dgamma, dbeta = back(dout[0], gamma, out[1], out[2])
        return dx, dgamma, dbeta, epsilon, dx

    return (
        operation("layer_norm" + suffix, 4, 3, bprop),
        operation("layer_norm_residual" + suffix, 5, 3, residual_bprop),
    )


def _frozen_layer_norm_operations(suffix: str) -> tuple[Any, Any]:
    """Return the same with frozen gamma and beta."""
    back = operation("layer_norm_frozen_back" + suffix, 4)

    def bprop(
        x: Tensor, gamma: Tensor, beta: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return back(dout[0], gamma, out[1], out[2]), gamma, beta, epsilon

    def residual_bprop(
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        epsilon: Tensor,
        residual: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx = back(dout[0], gamma, out[1], out[2])
        return dx, gamma, beta, epsilon, dx

    return (
        operation("layer_norm_frozen" + suffix, 4, 3, bprop),
        operation("layer_norm_frozen_residual" + suffix, 5, 3, residual_bprop),
    )


_layer_norm, _residual_norm = _layer_norm_operations("")
_layer_norm_bf16, _residual_norm_bf16 = _layer_norm_operations("_bf16")
_frozen_norm, _frozen_residual_norm = _frozen_layer_norm_operations("")
_frozen_norm_bf16, _frozen_residual_norm_bf16 = _frozen_layer_norm_operations("_bf16")


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, residual: Tensor | None, trains_scale: bool, kind: str
) -> Tensor:
    """As `kernels.layer_norm`."""
    scale, shift, constant = _cast(gamma, _FLOAT), _cast(beta, _FLOAT), constants(epsilon)
    if not trains_scale:
        return _frozen_layer_norm(x, _stop(scale), _stop(shift), constant, residual, kind)
    if residual is None:
        normalise = _layer_norm_bf16 if kind == "bf16" else _layer_norm
        return normalise(x, scale, shift, constant)[0]
    add_and_normalise = _residual_norm_bf16 if kind == "bf16" else _residual_norm
    return add_and_normalise(x, scale, shift, constant, _cast(residual, _FLOAT))[0]


def _frozen_layer_norm(
    x: Tensor, scale: Tensor, shift: Tensor, constant: Tensor, residual: Tensor | None, kind: str
) -> Tensor:
    if residual is None:
        normalise = _frozen_norm_bf16 if kind == "bf16" else _frozen_norm
        return normalise(x, scale, shift, constant)[0]
    add_and_normalise = _frozen_residual_norm_bf16 if kind == "bf16" else _frozen_residual_norm
    return add_and_normalise(x, scale, shift, constant, _cast(residual, _FLOAT))[0]


_rms_norm_back = operation("rms_norm_back", 4, 2)
_frozen_rms_norm_back = operation("rms_norm_frozen_back", 4)


def _rms_norm_bprop(
    x: Tensor, gamma: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dx, dgamma = _rms_norm_back(dout[0], x, gamma, out[1])
    return dx, dgamma, epsilon


def _frozen_rms_norm_bprop(
    x: Tensor, gamma: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return _frozen_rms_norm_back(dout[0], x, gamma, out[1]), gamma, epsilon


_rms_norm = operation("rms_norm", 3, 2, _rms_norm_bprop)
_frozen_rms_norm = operation("rms_norm_frozen", 3, 2, _frozen_rms_norm_bprop)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool) -> Tensor:
    """As `kernels.rms_norm`."""
    if trains_scale:
        return _rms_norm(x, _cast(gamma, _FLOAT), constants(epsilon))[0]
    return _frozen_rms_norm(x, _stop(_cast(gamma, _FLOAT)), constants(epsilon))[0]


_add_rms_norm_back = operation("add_rms_norm_back", 5, 2)
_frozen_add_rms_norm_back = operation("add_rms_norm_frozen_back", 5)


def _add_rms_norm_bprop(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dx, dgamma = _add_rms_norm_back(dout[0], dout[1], out[1], gamma, out[2])
    return dx, dx, dgamma, epsilon


def _frozen_add_rms_norm_bprop(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    dx = _frozen_add_rms_norm_back(dout[0], dout[1], out[1], gamma, out[2])
    return dx, dx, gamma, epsilon


_add_rms_norm = operation("add_rms_norm", 4, 3, _add_rms_norm_bprop)
_frozen_add_rms_norm = operation("add_rms_norm_frozen", 4, 3, _frozen_add_rms_norm_bprop)


def add_rms_norm(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool
) -> tuple[Tensor, Tensor]:
    """As `kernels.add_rms_norm`."""
    other, scale = _cast(residual, _FLOAT), _cast(gamma, _FLOAT)
    if trains_scale:
        normalised, total, _ = _add_rms_norm(x, other, scale, constants(epsilon))
    else:
        normalised, total, _ = _frozen_add_rms_norm(x, other, _stop(scale), constants(epsilon))
    return normalised, total


_rotary_back = operation("rotary_back", 4)


def _rotary_bprop(
    x: Tensor, cosine: Tensor, sine: Tensor, interleaved: Tensor, out: Tensor, dout: Tensor
) -> tuple[Tensor, ...]:
    return _rotary_back(dout, cosine, sine, interleaved), cosine, sine, interleaved


_rotary = operation("rotary", 4, bprop=_rotary_bprop)


def rotary(x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int, interleaved: bool) -> Tensor:
    """As `kernels.rotary`."""
    batch, length, width = x.shape
    heads = x.reshape((batch, length, num_heads, width // num_heads))
    angles = _stop(_cast(cosine, _FLOAT)), _stop(_cast(sine, _FLOAT))
    return _rotary(heads, angles[0], angles[1], constants(float(interleaved))).reshape(x.shape)


_bias_back = operation("bias_back", 1)


def _dense_operations(suffix: str) -> tuple[Any, Any, Any]:
    """Return the dense layer without bias, with a frozen and with a trained one."""
    dense_back = operation("dense_back" + suffix, 2)

    def dense_bprop(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight

    def biased_bprop(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight, bias

    def shifted_bprop(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
        return dense_back(dout, weight), weight, _bias_back(dout)

    return (
        operation("dense" + suffix, 2, 1, dense_bprop),
        operation("dense_biased" + suffix, 3, 1, biased_bprop),
        operation("dense_shifted" + suffix, 3, 1, shifted_bprop),
    )


_dense, _biased, _shifted = _dense_operations("")
_dense_bf16, _biased_bf16, _shifted_bf16 = _dense_operations("_bf16")


_dense_back = operation("dense_back", 2)
_weight_back = operation("weight_back", 2)


def _trained_bprop(x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    return _dense_back(dout, weight), _weight_back(dout, x)


def _trained_biased_bprop(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, ...]:
    return _dense_back(dout, weight), _weight_back(dout, x), _bias_back(dout)


_trained = operation("dense_trained", 2, 1, _trained_bprop)
_trained_biased = operation("dense_trained_biased", 3, 1, _trained_biased_bprop)


def dense_trained(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `kernels.dense_trained`."""
    if bias is None:
        return _trained(x, _cast(weight, _FLOAT))
    return _trained_biased(x, _cast(weight, _FLOAT), _cast(bias, _FLOAT))


def _lora_operations() -> tuple[Any, Any, Any]:
    """Return the dense layer with LoRA's branch, as `_dense_operations`."""
    lora_back = operation("lora_back", 7, 4)

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
        return lora_bprop(x, weight, lora_a, lora_b, scale, out, dout) + (bias,)  # noqa: RUF005, graph mode knows only +

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
        return lora_bprop(x, weight, lora_a, lora_b, scale, out, dout) + (_bias_back(dout[0]),)  # noqa: RUF005, graph mode knows only +

    return (
        operation("lora", 5, 2, lora_bprop),
        operation("lora_biased", 6, 2, biased_lora_bprop),
        operation("lora_shifted", 6, 2, shifted_lora_bprop),
    )


def _rounding_lora_operations() -> tuple[Any, Any, Any]:
    """Return the same in bfloat16. They take x as it is multiplied too, and keep only that for the gradient."""
    lora_back = operation("lora_back_bf16", 7, 4)

    def lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        rounded: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        dx, dlora_a, dlora_b, _ = lora_back(dout[0], rounded, out[1], weight, lora_a, lora_b, scale)
        return dx, weight, dlora_a, dlora_b, scale, rounded

    def biased_lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        rounded: Tensor,
        bias: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        return lora_bprop(x, weight, lora_a, lora_b, scale, rounded, out, dout) + (bias,)  # noqa: RUF005, graph mode knows only +

    def shifted_lora_bprop(
        x: Tensor,
        weight: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        scale: Tensor,
        rounded: Tensor,
        bias: Tensor,
        out: tuple[Tensor, ...],
        dout: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        return lora_bprop(x, weight, lora_a, lora_b, scale, rounded, out, dout) + (_bias_back(dout[0]),)  # noqa: RUF005, graph mode knows only +

    return (
        operation("lora_bf16", 6, 2, lora_bprop),
        operation("lora_biased_bf16", 7, 2, biased_lora_bprop),
        operation("lora_shifted_bf16", 7, 2, shifted_lora_bprop),
    )


def _round_rows_bprop(x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
    return (x,)


_lora, _biased_lora, _shifted_lora = _lora_operations()
_lora_bf16, _biased_lora_bf16, _shifted_lora_bf16 = _rounding_lora_operations()
_round_rows = operation("round_rows", 1, bprop=_round_rows_bprop)


def dense_frozen(x: Tensor, weight: Tensor, bias: Tensor | None, trains_bias: bool, kind: str) -> Tensor:
    """As `kernels.dense_frozen`, with products as `kind` says."""
    frozen = _stop(_cast(weight, _FLOAT))
    if bias is None:
        return _dense_bf16(x, frozen) if kind == "bf16" else _dense(x, frozen)
    shift = _cast(bias, _FLOAT)
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
    frozen, factor = _stop(_cast(weight, _FLOAT)), _stop(_cast(scale, _FLOAT))
    down, up = _cast(lora_a, _FLOAT), _cast(lora_b, _FLOAT)
    if kind == "bf16":
        return _rounding_lora(x, frozen, bias, down, up, factor, trains_bias)
    if bias is None:
        return _lora(x, frozen, down, up, factor)[0]
    shift = _cast(bias, _FLOAT)
    if trains_bias:
        return _shifted_lora(x, frozen, down, up, factor, shift)[0]
    return _biased_lora(x, frozen, down, up, factor, _stop(shift))[0]


def _rounding_lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, factor: Tensor, trains_bias: bool
) -> Tensor:
    rounded = _round_rows(_stop(x))
    if bias is None:
        return _lora_bf16(x, weight, down, up, factor, rounded)[0]
    shift = _cast(bias, _FLOAT)
    if trains_bias:
        return _shifted_lora_bf16(x, weight, down, up, factor, rounded, shift)[0]
    return _biased_lora_bf16(x, weight, down, up, factor, rounded, _stop(shift))[0]


_attention_back = operation("attention_back", 6, 3)
_attention_back_bf16 = operation("attention_back_bf16", 6, 3)
_attention_back_masked = operation("attention_back_masked", 7, 3)
_attention_back_masked_bf16 = operation("attention_back_masked_bf16", 7, 3)

_Gradients = tuple[Tensor, ...]


def _attention_bprop(
    query: Tensor, key: Tensor, value: Tensor, settings: Tensor, out: _Gradients, dout: _Gradients
) -> _Gradients:
    dquery, dkey, dvalue = _attention_back(query, key, value, settings, out[1], dout[0])
    return dquery, dkey, dvalue, settings


def _attention_bf16_bprop(
    query: Tensor, key: Tensor, value: Tensor, settings: Tensor, out: _Gradients, dout: _Gradients
) -> _Gradients:
    dquery, dkey, dvalue = _attention_back_bf16(query, key, out[2], settings, out[1], dout[0])
    return dquery, dkey, dvalue, settings


def _masked_attention_bprop(
    query: Tensor, key: Tensor, value: Tensor, settings: Tensor, mask: Tensor, out: _Gradients, dout: _Gradients
) -> _Gradients:
    dquery, dkey, dvalue = _attention_back_masked(query, key, value, settings, mask, out[1], dout[0])
    return dquery, dkey, dvalue, settings, mask


def _masked_attention_bf16_bprop(
    query: Tensor, key: Tensor, value: Tensor, settings: Tensor, mask: Tensor, out: _Gradients, dout: _Gradients
) -> _Gradients:
    dquery, dkey, dvalue = _attention_back_masked_bf16(query, key, out[2], settings, mask, out[1], dout[0])
    return dquery, dkey, dvalue, settings, mask


_attention = operation("attention", 4, 2, _attention_bprop)
_attention_bf16 = operation("attention_bf16", 4, 3, _attention_bf16_bprop)
_masked_attention = operation("attention_masked", 5, 2, _masked_attention_bprop)
_masked_attention_bf16 = operation("attention_masked_bf16", 5, 3, _masked_attention_bf16_bprop)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    num_heads: int,
    num_key_heads: int,
    causal: bool,
    kind: str,
) -> Tensor:
    """As `kernels.attention` without dropout."""
    batch, queries, width = query.shape
    size = width // num_heads
    heads = query.reshape((batch, queries, num_heads, size))
    key_heads = _cast(key, _FLOAT).reshape((batch, key.shape[1], num_key_heads, size))
    value_heads = _cast(value, _FLOAT).reshape((batch, key.shape[1], num_key_heads, size))
    settings = constants(float(causal), size**-0.5)
    if mask is None:
        attend = _attention_bf16 if kind == "bf16" else _attention
        return attend(heads, key_heads, value_heads, settings)[0].reshape(query.shape)
    attend = _masked_attention_bf16 if kind == "bf16" else _masked_attention
    return attend(heads, key_heads, value_heads, settings, _stop(_cast(mask, _FLOAT)))[0].reshape(query.shape)


_row_losses_back = operation("cross_entropy_back", 4)


def _row_losses_bprop(
    logits: Tensor, labels: Tensor, out: tuple[Tensor, ...], dout: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    return _row_losses_back(dout[0], logits, labels, out[1]), labels


_row_losses = operation("cross_entropy", 2, 2, _row_losses_bprop)


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` of each row, 0 where the label is -1; another wrong label is an error."""
    return _row_losses(logits, labels.astype(mindspore.int32))[0]
