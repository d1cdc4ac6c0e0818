"""The hot operations: what each computes, and the choice between its plain and its native formulation.

The choice is a constant of the graph that is being compiled: `switch` says how it is made.
"""

from __future__ import annotations

from collections.abc import Callable

import mindspore
from mindspore import Tensor, ops

from mindpet.kernels import plain
from mindpet.kernels.switch import missing, native_kind

# Where there is no library the native branches below are never taken, but MindSpore wants to resolve their names.
if missing() is None:
    from mindpet.kernels import native
else:
    native = plain  # type: ignore[misc]

__all__ = [
    "IGNORED_LABEL",
    "add_rms_norm",
    "attention",
    "cross_entropy",
    "dense",
    "dense_frozen",
    "dense_trained",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "lora_dense",
    "rms_norm",
    "rotary",
    "silu_gate",
    "tanh",
]

IGNORED_LABEL = -1
# Operators of tensors are several functions each to compile; these are single operations.
_cast, _multiply, _divide, _sum = ops.Cast(), ops.Mul(), ops.Div(), ops.ReduceSum()


def gelu(x: Tensor) -> Tensor:
    """Compute the exact GELU, `x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2)))` (arXiv:1606.08415).

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    kind = native_kind(x.dtype)
    if kind == "off":
        return plain.gelu(x)
    return native.gelu(x, kind)


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute GELU's tanh approximation, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    kind = native_kind(x.dtype)
    if kind == "off":
        return plain.gelu_tanh(x)
    return native.gelu_tanh(x, kind)


def tanh(x: Tensor) -> Tensor:
    """Compute `tanh(x)`, more exactly than MindSpore's own Tanh does on a CPU.

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    return plain.tanh(x)


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    """Compute `silu(gate) * x` with `silu(z) = z * sigmoid(z)`, the gate of SwiGLU (arXiv:2002.05202).

    Args:
        gate: Float tensor of any shape.
        x: Of the shape and dtype of `gate`.

    Returns:
        A tensor of the shape and dtype of `gate`.
    """
    kind = native_kind(gate.dtype)
    if kind == "off":
        return plain.silu_gate(gate, x)
    return native.silu_gate(gate, x, kind)


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    epsilon: float,
    residual: Tensor | None = None,
    trains_scale: bool = True,
) -> Tensor:
    """Normalise the last axis, `(x - mean) / sqrt(variance + epsilon) * gamma + beta` (arXiv:1607.06450).

    The statistics are taken in float32 whatever the dtype of `x`.

    Args:
        x: Float tensor (..., hidden).
        gamma: Scale (hidden,), any float dtype.
        beta: Shift (hidden,), any float dtype.
        epsilon: Positive constant added to the variance.
        residual: Of the shape and dtype of `x`; added to it first where given.
        trains_scale: Whether gamma or beta is trained; otherwise no gradient reaches them.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    kind = native_kind(x.dtype)
    if kind == "off":
        return plain.layer_norm(x, gamma, beta, epsilon, residual, trains_scale)
    return native.layer_norm(x, gamma, beta, epsilon, residual, trains_scale, kind)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool = True) -> Tensor:
    """Scale the last axis, `x / sqrt(mean(x^2) + epsilon) * gamma` (arXiv:1910.07467), with the mean in float32.

    Args:
        x: Float tensor (..., hidden).
        gamma: Scale (hidden,), any float dtype.
        epsilon: Positive constant added to the mean.
        trains_scale: Whether gamma is trained; otherwise no gradient reaches it.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if native_kind(x.dtype) == "off":
        return plain.rms_norm(x, gamma, epsilon, trains_scale)
    return native.rms_norm(x, gamma, epsilon, trains_scale)


def add_rms_norm(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool = True
) -> tuple[Tensor, Tensor]:
    """Compute `rms_norm(x + residual)` and, for the next residual connection, the sum itself.

    Args:
        x: Float tensor (..., hidden).
        residual: Of the shape and dtype of `x`.
        gamma: Scale (hidden,), any float dtype.
        epsilon: Positive constant added to the mean.
        trains_scale: Whether gamma is trained; otherwise no gradient reaches it.

    Returns:
        The normalised sum and the sum, both of the shape and dtype of `x`.
    """
    if native_kind(x.dtype) == "off":
        return plain.add_rms_norm(x, residual, gamma, epsilon, trains_scale)
    return native.add_rms_norm(x, residual, gamma, epsilon, trains_scale)


def rotary(x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int, interleaved: bool = False) -> Tensor:
    """Rotate pairs of each head by the angles of their position (arXiv:2104.09864).

    A pair (u, v) turns into `(u cosine - v sine, v cosine + u sine)`. No gradient reaches the angles.

    Args:
        x: Float tensor (batch, length, num_heads * head_dim), heads side by side.
        cosine: (batch or 1, length, pairs), the cosine of each pair's angle; `2 * pairs <= head_dim`.
        sine: Of the same shape, the sines.
        num_heads: Number of heads.
        interleaved: Pairs are neighbours, elements 2i and 2i + 1 of a head (GPT-J, GLM); otherwise elements i and
            pairs + i (Llama). What lies behind the pairs stays as it is.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if native_kind(x.dtype) == "off":
        return plain.rotary(x, cosine, sine, num_heads, interleaved)
    return native.rotary(x, cosine, sine, num_heads, interleaved)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `x W^T + b` in the dtype of `x`; weight and bias are cast to it.

    Args:
        x: Float tensor (..., inputs).
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,), any float dtype, or None for no bias.

    Returns:
        A tensor (..., outputs) of the dtype of `x`.
    """
    return plain.dense(x, weight, bias)


def dense_frozen(x: Tensor, weight: Tensor, bias: Tensor | None = None, trains_bias: bool = False) -> Tensor:
    """Compute `dense` for a weight that is not trained: no gradient reaches it.

    Args:
        x: Float tensor (..., inputs).
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,), any float dtype, or None for no bias.
        trains_bias: Whether the bias is trained; otherwise no gradient reaches it either.

    Returns:
        A tensor (..., outputs) of the dtype of `x`.
    """
    kind = native_kind(x.dtype)
    if kind == "off":
        return plain.dense_frozen(x, weight, bias, trains_bias)
    return native.dense_frozen(x, weight, bias, trains_bias, kind)


def dense_trained(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `dense` for a weight that is trained; products are in float32 with the kernels 'bf16' too.

    Args:
        x: Float tensor (..., inputs).
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,), any float dtype, or None for no bias.

    Returns:
        A tensor (..., outputs) of the dtype of `x`.
    """
    if native_kind(x.dtype) == "off":
        return plain.dense(x, weight, bias)
    return native.dense_trained(x, weight, bias)


def lora_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scale: Tensor,
    trains_bias: bool = False,
) -> Tensor:
    """Compute a frozen dense layer with LoRA's branch, `x W^T + b + scale * x A^T B^T` (arXiv:2106.09685).

    Gradients reach `x`, `lora_a` and `lora_b`, and `bias` where it is trained; nothing else.

    Args:
        x: Float tensor (..., inputs).
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,), any float dtype, or None for no bias.
        lora_a: (rank, inputs), any float dtype.
        lora_b: (outputs, rank), any float dtype.
        scale: Scalar tensor, alpha / rank.
        trains_bias: Whether the bias is trained.

    Returns:
        A tensor (..., outputs) of the dtype of `x`.
    """
    kind = native_kind(x.dtype)
    if kind == "off":
        return plain.lora_dense(x, weight, bias, lora_a, lora_b, scale, trains_bias)
    return native.lora_dense(x, weight, bias, lora_a, lora_b, scale, trains_bias, kind)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    num_heads: int,
    dropout: Callable[[Tensor], Tensor] | None = None,
    num_key_heads: int | None = None,
    causal: bool = False,
) -> Tensor:
    """Compute `softmax(Q K^T / sqrt(head_dim) + mask) V` for each head (arXiv:1706.03762).

    The heads lie side by side in the last axis, head h in columns h * head_dim to (h + 1) * head_dim, as a dense layer
    leaves them. The softmax is taken in float32, the two products in the dtype of `query`. No gradient reaches the
    mask. With dropout the formulation is always the plain one.

    Args:
        query: (batch, query length, num_heads * head_dim).
        key: (batch, key length, num_key_heads * head_dim); its length may differ from the query's.
        value: (batch, key length, num_key_heads * head_dim).
        mask: Float tensor (batch or 1, 1, 1 or query length, key length) that is added to the scores: 0 where a key is
            visible, a large negative number such as -1e4 where it is hidden; None hides nothing.
        num_heads: Number of query heads; a divisor of hidden.
        dropout: Applied to the probabilities (batch, num_heads, query length, key length) where given.
        num_key_heads: Number of heads of keys and values, a divisor of num_heads (arXiv:2305.13245); None for as many
            as queries have.
        causal: Whether a query sees no key behind itself: the last query sees all keys, the one before all but the
            last, and so on. Each query must see one.

    Returns:
        A tensor of the shape and dtype of `query`.
    """
    key_heads = num_heads if num_key_heads is None else num_key_heads
    kind = native_kind(query.dtype)
    if kind == "off" or dropout is not None:
        return plain.attention(query, key, value, mask, num_heads, dropout, key_heads, causal)
    return native.attention(query, key, value, mask, num_heads, key_heads, causal, kind)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean of `-log softmax(logits)[label]` over the rows whose label is not -1, in float32.

    Args:
        logits: Float tensor (..., classes).
        labels: Integer tensor (...), each entry a class or -1 for a row that does not count.

    Returns:
        A float32 scalar; 0 when no row counts.
    """
    counts = _cast(ops.not_equal(labels, IGNORED_LABEL), mindspore.float32)
    if native_kind(logits.dtype) == "off":
        losses = plain.row_losses(logits, labels)
    else:
        losses = native.row_losses(logits, labels)
    return _divide(_sum(_multiply(losses, counts)), ops.maximum(_sum(counts), 1.0))
