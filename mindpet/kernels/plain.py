"""The plain formulations: public MindSpore operations that exist on CPU and Ascend, differentiated by MindSpore.

What each computes stands in `operations`, whose functions have the same names.

Matrix products take the dtype of their input; everything else computes in float32 whatever the dtype, because halves
lose digits where terms cancel, and are three times slower in these functions on a CPU.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import constexpr

__all__ = [
    "add_rms_norm",
    "attention",
    "dense",
    "dense_frozen",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "lora_dense",
    "rms_norm",
    "rotary",
    "row_losses",
    "silu_gate",
    "tanh",
]

_HIDDEN = -1e30  # added to the score of a key that lies behind its query
_SQRT_HALF = math.sqrt(0.5)
_TWO_SQRT_TWO_OVER_PI = 2.0 * math.sqrt(2.0 / math.pi)

_erf = ops.Erf()
_sigmoid = ops.Sigmoid()
_rsqrt = ops.Rsqrt()
_softmax = ops.Softmax(axis=-1)
_log_softmax = ops.LogSoftmax(axis=-1)
_bias_add = ops.BiasAdd()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)


def gelu(x: Tensor) -> Tensor:
    """MindSpore's own `ops.GeLU` is the tanh approximation, and three times slower on a CPU."""
    wide = x.astype(mindspore.float32)
    return (0.5 * wide * (1.0 + _erf(wide * _SQRT_HALF))).astype(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """Written with the sigmoid, which is the same function: `(1 + tanh(u)) / 2 = sigmoid(2 u)`.

    On a CPU it is a hundred times closer to the true value than MindSpore's tanh.
    """
    wide = x.astype(mindspore.float32)
    return (wide * _sigmoid(_TWO_SQRT_TWO_OVER_PI * (wide + 0.044715 * wide * wide * wide))).astype(x.dtype)


def tanh(x: Tensor) -> Tensor:
    """Compute `2 * sigmoid(2 x) - 1`; MindSpore's own Tanh is off by 1e-4 on a CPU, this form by 2e-6."""
    return (2.0 * _sigmoid(2.0 * x.astype(mindspore.float32)) - 1.0).astype(x.dtype)


def silu_gate(gate: Tensor, x: Tensor) -> Tensor:
    """Compute the gate in float32."""
    wide = gate.astype(mindspore.float32)
    return (wide * _sigmoid(wide) * x.astype(mindspore.float32)).astype(gate.dtype)


def layer_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, residual: Tensor | None, trains_scale: bool
) -> Tensor:
    """Take the statistics in float32 whatever the dtype of `x`."""
    if not trains_scale:
        gamma, beta = ops.stop_gradient(gamma), ops.stop_gradient(beta)
    if residual is not None:
        x = x + residual
    wide = mindspore.float32
    normalised, _, _ = ops.LayerNorm(-1, -1, epsilon)(x.astype(wide), gamma.astype(wide), beta.astype(wide))
    return normalised.astype(x.dtype)


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool) -> Tensor:
    """Take the mean in float32 whatever the dtype of `x`; MindSpore's RmsNorm does not exist on a CPU."""
    if not trains_scale:
        gamma = ops.stop_gradient(gamma)
    wide = x.astype(mindspore.float32)
    scale = _rsqrt((wide * wide).mean(axis=-1, keep_dims=True) + epsilon)
    return (wide * scale * gamma.astype(mindspore.float32)).astype(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: float, trains_scale: bool
) -> tuple[Tensor, Tensor]:
    """Add in the dtype of `x`."""
    total = x + residual
    return rms_norm(total, gamma, epsilon, trains_scale), total


def rotary(x: Tensor, cosine: Tensor, sine: Tensor, num_heads: int, interleaved: bool) -> Tensor:
    """Turn all pairs of a head at once."""
    batch, length, width = x.shape
    size, pairs = width // num_heads, cosine.shape[-1]
    heads = x.reshape((batch, length, num_heads, size))
    c = ops.stop_gradient(ops.expand_dims(cosine, 2)).astype(x.dtype)
    s = ops.stop_gradient(ops.expand_dims(sine, 2)).astype(x.dtype)
    if interleaved:
        couples = heads[..., : 2 * pairs].reshape((batch, length, num_heads, pairs, 2))
        first, second = couples[..., 0], couples[..., 1]
        turned = ops.stack((first * c - second * s, second * c + first * s), -1)
        turned = turned.reshape((batch, length, num_heads, 2 * pairs))
    else:
        first, second = heads[..., :pairs], heads[..., pairs : 2 * pairs]
        turned = ops.concat((first * c - second * s, second * c + first * s), -1)
    if 2 * pairs < size:
        turned = ops.concat((turned, heads[..., 2 * pairs :]), -1)
    return turned.reshape(x.shape)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply in the dtype of `x`."""
    rows = x.reshape((-1, x.shape[-1]))
    product = _matmul_transposed(rows, weight.astype(x.dtype))
    if bias is not None:
        product = _bias_add(product, bias.astype(x.dtype))
    return product.reshape((*x.shape[:-1], weight.shape[0]))


def dense_frozen(x: Tensor, weight: Tensor, bias: Tensor | None, trains_bias: bool) -> Tensor:
    """Compute a dense layer through which no gradient reaches the weight."""
    shift = bias
    if bias is not None and not trains_bias:
        shift = ops.stop_gradient(bias)
    return dense(x, ops.stop_gradient(weight), shift)


def lora_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: Tensor, trains_bias: bool
) -> Tensor:
    """Compute the branch beside the frozen layer."""
    branch = dense(dense(x, lora_a, None), lora_b, None)
    return dense_frozen(x, weight, bias, trains_bias) + branch * ops.stop_gradient(scale).astype(x.dtype)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    num_heads: int,
    dropout: Callable[[Tensor], Tensor] | None,
    num_key_heads: int,
    causal: bool,
) -> Tensor:
    """Take the softmax in float32, the two products in the dtype of `query`."""
    scale = (query.shape[-1] // num_heads) ** -0.5
    keys = _repeat_heads(_split_heads(key, num_key_heads), num_heads // num_key_heads)
    values = _repeat_heads(_split_heads(value, num_key_heads), num_heads // num_key_heads)
    scores = _batch_matmul_transposed(_split_heads(query * scale, num_heads), keys).astype(mindspore.float32)
    if mask is not None:
        scores = scores + ops.stop_gradient(mask)
    if causal:
        scores = scores + _causal_mask(query.shape[1], key.shape[1])
    probabilities = _softmax(scores).astype(query.dtype)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return _join_heads(_batch_matmul(probabilities, values))


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]` of each row in float32; a row with a negative label has any finite loss."""
    classes = ops.maximum(labels, 0)
    log_probabilities = _log_softmax(logits.astype(mindspore.float32))
    return -ops.gather_elements(log_probabilities, -1, ops.expand_dims(classes, -1)).squeeze(-1)


@constexpr
@lru_cache(maxsize=8)
def _causal_mask(queries: int, keys: int) -> Tensor:
    """Return (queries, keys), 0 where a query sees a key; the last query sees all keys."""
    behind = np.arange(keys) > np.arange(queries)[:, None] + keys - queries
    return Tensor(np.where(behind, _HIDDEN, 0.0).astype(np.float32))


def _repeat_heads(x: Tensor, times: int) -> Tensor:
    """Turn (batch, heads, length, head_dim) into (batch, heads * times, length, head_dim), each head `times` times."""
    if times == 1:
        return x
    batch, heads, length, head_dim = x.shape
    repeated = ops.broadcast_to(ops.expand_dims(x, 2), (batch, heads, times, length, head_dim))
    return repeated.reshape((batch, heads * times, length, head_dim))


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn (batch, length, hidden) into (batch, num_heads, length, head_dim)."""
    batch, length, hidden = x.shape
    return x.reshape((batch, length, num_heads, hidden // num_heads)).transpose((0, 2, 1, 3))


def _join_heads(x: Tensor) -> Tensor:
    """Turn (batch, num_heads, length, head_dim) into (batch, length, hidden)."""
    batch, num_heads, length, head_dim = x.shape
    return x.transpose((0, 2, 1, 3)).reshape((batch, length, num_heads * head_dim))
