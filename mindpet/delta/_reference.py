"""The formulas of the delta layers in NumPy and float64, for tests and for the self-test on a device.

Each function takes the layer's parameters as a mapping from their names inside the layer to arrays, and computes in the
dtype of its arguments: hand in float64.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = [
    "ACTIVATIONS",
    "Array",
    "adapter",
    "adapter_dense",
    "conv2d",
    "dense",
    "dora_dense",
    "dora_norm",
    "ia3_dense",
    "lora_conv2d",
    "lora_dense",
    "lora_embedding",
    "low_rank_adapter",
    "low_rank_adapter_dense",
    "pissa_dense",
    "prefix_encoder",
    "prefix_layer",
    "r_drop_loss",
    "tokens_embedding",
    "vera_dense",
]

Array = np.ndarray
Parameters = Mapping[str, Array]

_BLOCK = "mindpet_delta_adapter_block."
_DOWN = "mindpet_delta_low_rank_adapter_down_sampler."
_UP = "mindpet_delta_low_rank_adapter_up_sampler."


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _log_softmax(x: Array, axis: int = -1) -> Array:
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def _fast_gelu(x: Array) -> Array:
    return x * _sigmoid(1.702 * x)


# By the names of mindspore.nn.get_activation, save rrelu, which is random. prelu and preluExt are at their start.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "fast_gelu": _fast_gelu,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "hsigmoid": lambda x: np.clip((x + 3) / 6, 0, 1),
    "hswish": lambda x: x * np.clip((x + 3) / 6, 0, 1),
    "leakyrelu": lambda x: np.where(x > 0, x, 0.2 * x),
    "logsigmoid": lambda x: -np.logaddexp(0, -x),
    "logsoftmax": _log_softmax,
    "logsoftmaxExt": _log_softmax,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "preluExt": lambda x: np.where(x > 0, x, 0.25 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softmax": lambda x: np.exp(_log_softmax(x)),
    "softmax2d": lambda x: np.exp(_log_softmax(x, -3)),
    "softmin": lambda x: np.exp(_log_softmax(-x)),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "tanh": np.tanh,
    "tanhshrink": lambda x: x - np.tanh(x),
}


def _activate(activation: str | None, x: Array) -> Array:
    return x if activation is None else ACTIVATIONS[activation](x)


def dense(x: Array, parameters: Parameters, activation: str | None = None) -> Array:
    """Return activation(x weight^T + bias); no bias where the parameters have none."""
    return _activate(activation, x @ parameters["weight"].T + parameters.get("bias", 0))


def lora_dense(x: Array, parameters: Parameters, scaling: float, activation: str | None = None) -> Array:
    """Return activation(x weight^T + bias + scaling x lora_a^T lora_b^T)."""
    branch = x @ parameters["mindpet_delta_lora_a"].T @ parameters["mindpet_delta_lora_b"].T
    return _activate(activation, dense(x, parameters) + scaling * branch)


def dora_norm(parameters: Parameters, scaling: float) -> Array:
    """Return the length of each row of weight + scaling lora_b lora_a."""
    change = parameters["mindpet_delta_lora_b"] @ parameters["mindpet_delta_lora_a"]
    return np.sqrt(((parameters["weight"] + scaling * change) ** 2).sum(1))


def dora_dense(x: Array, parameters: Parameters, scaling: float, activation: str | None = None) -> Array:
    """Return activation(ratio * (x weight^T + scaling x lora_a^T lora_b^T) + bias) with ratio = magnitude / norm.

    The norm is `dora_norm`, or `norm` among the parameters where it is held fast.
    """
    norm = parameters["norm"] if "norm" in parameters else dora_norm(parameters, scaling)
    ratio = parameters["mindpet_delta_lora_magnitude"] / norm
    branch = x @ parameters["mindpet_delta_lora_a"].T @ parameters["mindpet_delta_lora_b"].T
    rows = ratio * (x @ parameters["weight"].T + scaling * branch) + parameters.get("bias", 0)
    return _activate(activation, rows)


def pissa_dense(x: Array, parameters: Parameters, scaling: float, activation: str | None = None) -> Array:
    """Return activation(x weight^T + bias + scaling (x lora_a^T lora_b^T - x first_a^T first_b^T))."""
    now, first = (
        x @ parameters[f"mindpet_delta_lora_{which}a"].T @ parameters[f"mindpet_delta_lora_{which}b"].T
        for which in ("", "first_")
    )
    return _activate(activation, dense(x, parameters) + scaling * (now - first))


def vera_dense(x: Array, parameters: Parameters, activation: str | None = None) -> Array:
    """Return activation(x weight^T + bias + lambda_b * ((lambda_d * (x A^T)) B^T)) with the first part of A and B."""
    outputs, inputs = parameters["weight"].shape
    a = parameters["mindpet_state_vera_a"][:, :inputs]
    b = parameters["mindpet_state_vera_b"][:outputs]
    hidden = parameters["mindpet_delta_vera_lambda_d"] * (x @ a.T)
    return _activate(activation, dense(x, parameters) + parameters["mindpet_delta_vera_lambda_b"] * (hidden @ b.T))


def tokens_embedding(ids: Array, parameters: Parameters) -> Array:
    """Return the trained row of an id that has one, else its row of the table."""
    slots = parameters["mindpet_state_token_slots"].astype(int)[ids]
    rows = parameters["mindpet_delta_tokens_rows"][np.maximum(slots, 0)]
    return np.where(slots[..., None] < 0, parameters["embedding_table"][ids], rows)


def lora_embedding(ids: Array, parameters: Parameters, scaling: float) -> Array:
    """Return embedding_table[i] + scaling lora_b lora_a[:, i] for each of the ids."""
    change = (parameters["mindpet_delta_lora_b"] @ parameters["mindpet_delta_lora_a"]).T
    return (parameters["embedding_table"] + scaling * change)[ids]


def conv2d(
    x: Array,
    weight: Array,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, ...] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Array:
    """Convolve x (batch, in, height, width) with a weight (out, in / groups, height, width).

    The padding counts rows above and below, columns left and right.
    """
    above, below, left, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (above, below), (left, right)))
    windows = x
    for axis in (0, 1):
        extent = (weight.shape[2 + axis] - 1) * dilation[axis] + 1
        windows = np.lib.stride_tricks.sliding_window_view(windows, extent, 2 + axis)[..., :: dilation[axis]]
    windows = windows[:, :, :: stride[0], :: stride[1]]  # (batch, in, rows, columns, height, width)
    groups = x.shape[1] // weight.shape[1]
    pairs = zip(np.split(windows, groups, 1), np.split(weight, groups), strict=True)
    return np.concatenate([np.einsum("niyxhw,oihw->noyx", *pair) for pair in pairs], 1)


def lora_conv2d(x: Array, parameters: Parameters, scaling: float, **sliding: Any) -> Array:
    """Return x * weight + bias + scaling (x * lora_a) * lora_b, with * for the convolution."""
    branch = conv2d(conv2d(x, parameters["mindpet_delta_lora_a"], **sliding), parameters["mindpet_delta_lora_b"])
    bias = np.reshape(parameters.get("bias", 0), (-1, 1, 1))
    return conv2d(x, parameters["weight"], **sliding) + bias + scaling * branch


def ia3_dense(x: Array, parameters: Parameters, feedforward: bool = False, activation: str | None = None) -> Array:
    """Return activation(scale * (x weight^T + bias)), or with `feedforward` activation((scale * x) weight^T + bias)."""
    scale = parameters["mindpet_delta_ia3_scale"]
    rows = dense(x * scale, parameters) if feedforward else scale * dense(x, parameters)
    return _activate(activation, rows)


def adapter(x: Array, parameters: Parameters, non_linearity: str = "gelu") -> Array:
    """Return x + non_linearity(x W_down^T + b_down) W_up^T + b_up."""
    hidden = dense(x, _inside(f"{_BLOCK}mindpet_delta_adapter_down_sampler.", parameters), non_linearity)
    return x + dense(hidden, _inside(f"{_BLOCK}mindpet_delta_adapter_up_sampler.", parameters))


def adapter_dense(
    x: Array, parameters: Parameters, non_linearity: str = "gelu", activation: str | None = None
) -> Array:
    """Return adapter(activation(x weight^T + bias))."""
    return adapter(dense(x, parameters, activation), _inside("mindpet_delta_adapter.", parameters), non_linearity)


def low_rank_adapter(x: Array, parameters: Parameters, non_linearity: str = "gelu") -> Array:
    """Return x + non_linearity(x left_down right_down + b_down) left_up right_up + b_up."""
    hidden = _activate(non_linearity, _low_rank(x, _inside(_DOWN, parameters)))
    return x + _low_rank(hidden, _inside(_UP, parameters))


def low_rank_adapter_dense(
    x: Array, parameters: Parameters, non_linearity: str = "gelu", activation: str | None = None
) -> Array:
    """Return low_rank_adapter(activation(x weight^T + bias))."""
    inner = _inside("mindpet_delta_low_rank_adapter.", parameters)
    return low_rank_adapter(dense(x, parameters, activation), inner, non_linearity)


def _low_rank(x: Array, parameters: Parameters) -> Array:
    left = parameters["mindpet_delta_low_rank_adapter_weight_left"]
    right = parameters["mindpet_delta_low_rank_adapter_weight_right"]
    return x @ (left @ right) + parameters["bias"]


def prefix_layer(parameters: Parameters) -> tuple[Array, Array]:
    """Return past_key and past_value, the halves of tanh(table W_1^T + b_1) W_2^T + b_2."""
    trans = "mindpet_delta_prefixtuning_control_trans."
    table = parameters["mindpet_delta_prefixtuning_wte.embedding_table"]
    both = dense(dense(table, _inside(f"{trans}0.", parameters), "tanh"), _inside(f"{trans}2.", parameters))
    past_key, past_value = np.split(both, 2, -1)
    return past_key, past_value


def prefix_encoder(parameters: Parameters, batch: int, layers: int, heads: int) -> Array:
    """Return the prefixes of all layers, of shape (layers, 2, batch, heads, tokens, channels)."""
    prefix = parameters["mindpet_delta_ptuning2_embedding.embedding_table"]
    projected = "mindpet_delta_ptuning2_dense_in.weight" in parameters
    if projected:
        hidden = dense(prefix, _inside("mindpet_delta_ptuning2_dense_in.", parameters), "tanh")
        prefix = dense(hidden, _inside("mindpet_delta_ptuning2_dense_out.", parameters))
    split = prefix.reshape(len(prefix), layers, 2, heads, -1).transpose(1, 2, 3, 0, 4)
    return np.repeat(split[:, :, None], batch, 2)


def r_drop_loss(logits: Array, labels: Array, alpha: float = 4) -> float:
    """Return the mean cross entropy of 2 N rows plus alpha times the mean of (KL(p || q) + KL(q || p)) / 4.

    Args:
        logits: (2 N, classes); the rows 2 i and 2 i + 1 are a pair.
        labels: 2 N class indices, or class probabilities of the shape of `logits`.
        alpha: the weight of the divergence.
    """
    log_probabilities = _log_softmax(logits)
    classes = np.arange(logits.shape[1])
    targets = labels if labels.shape == logits.shape else labels.reshape(-1, 1) == classes
    ce_loss = -(targets * log_probabilities).sum(-1).mean()
    log_p, log_q = log_probabilities[::2], log_probabilities[1::2]
    forward = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    backward = (np.exp(log_q) * (log_q - log_p)).sum(-1)
    return float(ce_loss + alpha * ((forward + backward) / 4).mean())


def _inside(prefix: str, parameters: Parameters) -> dict[str, Array]:
    """Return the parameters of the cell under `prefix`, by their names inside it."""
    return {name.removeprefix(prefix): value for name, value in parameters.items() if name.startswith(prefix)}
