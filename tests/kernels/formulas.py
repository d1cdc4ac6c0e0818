"""What the kernels compute, written once more in NumPy and float64."""

import numpy as np
from scipy import special


def gelu(x):
    return x * special.ndtr(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, gamma, beta, epsilon, residual=0.0):
    x = x + residual
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def silu_gate(gate, x):
    return gate * special.expit(gate) * x


def rms_norm(x, gamma, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gamma


def add_rms_norm(x, residual, gamma, epsilon):
    return rms_norm(x + residual, gamma, epsilon), x + residual


def rotary(x, angles, num_heads, interleaved=False):
    """Each pair as a complex number, turned by its angle."""
    batch, length, width = x.shape
    heads, pairs = x.reshape(batch, length, num_heads, -1).copy(), angles.shape[-1]
    first = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    second = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    turned = (heads[..., first] + 1j * heads[..., second]) * np.exp(1j * angles)[:, :, None]
    heads[..., first], heads[..., second] = turned.real, turned.imag
    return heads.reshape(batch, length, width)


def dense(x, weight, bias=0.0):
    return x @ weight.T + bias


def lora_dense(x, weight, bias, lora_a, lora_b, scale):
    return dense(x, weight, bias) + scale * x @ lora_a.T @ lora_b.T


def attention(query, key, value, mask, num_heads, num_key_heads=None, causal=False):
    head_dim = query.shape[-1] // num_heads
    group = num_heads // (num_key_heads or num_heads)
    queries, keys = query.shape[1], key.shape[1]
    behind = np.triu(np.full((queries, keys), -np.inf), keys - queries + 1) if causal else 0.0
    output = np.empty_like(query)
    for head in range(num_heads):
        columns = slice(head * head_dim, (head + 1) * head_dim)
        shared = slice(head // group * head_dim, (head // group + 1) * head_dim)
        scores = query[..., columns] @ key[..., shared].swapaxes(1, 2) / np.sqrt(head_dim) + behind
        scores = scores if mask is None else scores + mask[:, 0]
        output[..., columns] = special.softmax(scores, axis=-1) @ value[..., shared]
    return output


def cross_entropy(logits, labels):
    rows = [(row, label) for row, label in zip(logits, labels, strict=True) if label != -1]
    return np.mean([special.logsumexp(row) - row[label] for row, label in rows]) if rows else 0.0
