"""The plain formulations: public MindSpore operations that exist on CPU and Ascend, differentiated by MindSpore.

Matrix products take the dtype of their input; everything else computes in float32 whatever the dtype, because halves
lose digits where terms cancel, and are three times slower in these functions on a CPU.
"""

import math
from collections.abc import Callable

import mindspore
from mindspore import Tensor, ops

__all__ = ["IGNORED_LABEL", "attention", "cross_entropy", "dense", "gelu", "gelu_tanh", "layer_norm", "tanh"]

IGNORED_LABEL = -1

_SQRT_HALF = math.sqrt(0.5)
_TWO_SQRT_TWO_OVER_PI = 2.0 * math.sqrt(2.0 / math.pi)

_erf = ops.Erf()
_sigmoid = ops.Sigmoid()
_softmax = ops.Softmax(axis=-1)
_log_softmax = ops.LogSoftmax(axis=-1)
_bias_add = ops.BiasAdd()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)


def gelu(x: Tensor) -> Tensor:
    """Compute the exact GELU, `x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2)))` (arXiv:1606.08415).

    MindSpore's own `ops.GeLU` is the tanh approximation, and three times slower on a CPU.

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    wide = x.astype(mindspore.float32)
    return (0.5 * wide * (1.0 + _erf(wide * _SQRT_HALF))).astype(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute GELU's tanh approximation, `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.

    Written with the sigmoid, which is the same function (`(1 + tanh(u)) / 2 = sigmoid(2 u)`) and, on a CPU, a hundred
    times closer to the true value than MindSpore's tanh.

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    wide = x.astype(mindspore.float32)
    return (wide * _sigmoid(_TWO_SQRT_TWO_OVER_PI * (wide + 0.044715 * wide * wide * wide))).astype(x.dtype)


def tanh(x: Tensor) -> Tensor:
    """Compute `tanh(x) = 2 * sigmoid(2 x) - 1`; MindSpore's own Tanh is off by 1e-4 on a CPU, this form by 2e-6.

    Args:
        x: Float tensor of any shape.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    return (2.0 * _sigmoid(2.0 * x.astype(mindspore.float32)) - 1.0).astype(x.dtype)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalise the last axis, `(x - mean) / sqrt(variance + epsilon) * gamma + beta` (arXiv:1607.06450).

    The statistics are taken in float32 whatever the dtype of `x`.

    Args:
        x: Float tensor (..., hidden).
        gamma: Scale (hidden,), any float dtype.
        beta: Shift (hidden,), any float dtype.
        epsilon: Positive constant added to the variance.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    wide = mindspore.float32
    normalised, _, _ = ops.LayerNorm(-1, -1, epsilon)(x.astype(wide), gamma.astype(wide), beta.astype(wide))
    return normalised.astype(x.dtype)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `x W^T + b` in the dtype of `x`; weight and bias are cast to it.

    Args:
        x: Float tensor (..., inputs).
        weight: (outputs, inputs), any float dtype.
        bias: (outputs,), any float dtype, or None for no bias.

    Returns:
        A tensor (..., outputs) of the dtype of `x`.
    """
    rows = x.reshape((-1, x.shape[-1]))
    product = _matmul_transposed(rows, weight.astype(x.dtype))
    if bias is not None:
        product = _bias_add(product, bias.astype(x.dtype))
    return product.reshape((*x.shape[:-1], weight.shape[0]))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    num_heads: int,
    dropout: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute `softmax(Q K^T / sqrt(head_dim) + mask) V` for each head (arXiv:1706.03762).

    The heads lie side by side in the last axis, head h in columns h * head_dim to (h + 1) * head_dim, as a dense layer
    leaves them. The softmax is taken in float32, the two products in the dtype of `query`.

    Args:
        query: (batch, query length, hidden), hidden = num_heads * head_dim.
        key: (batch, key length, hidden); its length may differ from the query's.
        value: (batch, key length, hidden).
        mask: Float tensor (batch, 1, 1 or query length, key length) that is added to the scores: 0 where a key is
            visible, a large negative number such as -1e4 where it is hidden.
        num_heads: Number of heads; a divisor of hidden.
        dropout: Applied to the probabilities (batch, num_heads, query length, key length) where given.

    Returns:
        A tensor (batch, query length, hidden) of the dtype of `query`.
    """
    scale = (query.shape[-1] // num_heads) ** -0.5
    scores = _batch_matmul_transposed(_split_heads(query * scale, num_heads), _split_heads(key, num_heads))
    probabilities = _softmax(scores.astype(mindspore.float32) + mask).astype(query.dtype)
    if dropout is not None:
        probabilities = dropout(probabilities)
    return _join_heads(_batch_matmul(probabilities, _split_heads(value, num_heads)))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean of `-log softmax(logits)[label]` over the rows whose label is not -1, in float32.

    Args:
        logits: Float tensor (..., classes).
        labels: Integer tensor (...), each entry a class or -1 for a row that does not count.

    Returns:
        A float32 scalar; 0 when no row counts.
    """
    counts = (labels != IGNORED_LABEL).astype(mindspore.float32)
    classes = ops.maximum(labels, 0)
    log_probabilities = _log_softmax(logits.astype(mindspore.float32))
    losses = -ops.gather_elements(log_probabilities, -1, ops.expand_dims(classes, -1)).squeeze(-1)
    return (losses * counts).sum() / ops.maximum(counts.sum(), 1.0)


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Turn (batch, length, hidden) into (batch, num_heads, length, head_dim)."""
    batch, length, hidden = x.shape
    return x.reshape((batch, length, num_heads, hidden // num_heads)).transpose((0, 2, 1, 3))


def _join_heads(x: Tensor) -> Tensor:
    """Turn (batch, num_heads, length, head_dim) into (batch, length, hidden)."""
    batch, num_heads, length, head_dim = x.shape
    return x.transpose((0, 2, 1, 3)).reshape((batch, length, num_heads * head_dim))
