"""From the shapes of a native operation's inputs to those of its outputs, refusing shapes that do not fit together.

Native code trusts shapes; here is the one place where they are checked. A size that is not known yet, -1, passes.
"""

from __future__ import annotations

Shape = list[int]


def first(x: Shape, *_: Shape) -> Shape:
    """Return the first shape."""
    return x


def first_two(x: Shape, y: Shape, *_: Shape) -> tuple[Shape, Shape]:
    """Return the first two shapes."""
    return x, y


def first_three(x: Shape, y: Shape, z: Shape, *_: Shape) -> tuple[Shape, Shape, Shape]:
    """Return the first three shapes."""
    return x, y, z


def second(_: Shape, y: Shape, *__: Shape) -> Shape:
    """Return the second shape."""
    return y


def gate(gate: Shape, x: Shape) -> Shape:
    """Infer `silu_gate`."""
    _require("x", x, gate)
    return gate


def layer_norm(x: Shape, gamma: Shape, beta: Shape, _: Shape, residual: Shape | None = None) -> tuple[Shape, ...]:
    """Infer y, the normalised rows, and one number for each row."""
    _require("gamma", gamma, x[-1:])
    _require("beta", beta, x[-1:])
    if residual is not None:
        _require("residual", residual, x)
    return x, x, x[:-1]


def layer_norm_back(dy: Shape, gamma: Shape, *_: Shape) -> tuple[Shape, ...]:
    """Infer the gradients by x, gamma and beta."""
    return dy, gamma, gamma


def rms_norm(x: Shape, gamma: Shape, _: Shape) -> tuple[Shape, ...]:
    """Infer y, and one number for each row."""
    _require("gamma", gamma, x[-1:])
    return x, x[:-1]


def rms_norm_back(dy: Shape, _: Shape, gamma: Shape, __: Shape) -> tuple[Shape, ...]:
    """Infer the gradients by x and gamma."""
    return dy, gamma


def rotary(x: Shape, cosine: Shape, sine: Shape, _: Shape) -> Shape:
    """Infer y of x (batch, length, heads, size) and angles (batch or 1, length, pairs)."""
    batch = 1 if cosine[0] == 1 else x[0]
    pairs = cosine[-1] if 2 * cosine[-1] <= x[3] else x[3] // 2
    _require("cosine", cosine, [batch, x[1], pairs])
    _require("sine", sine, [batch, x[1], pairs])
    return x


def dense(x: Shape, weight: Shape, bias: Shape | None = None) -> Shape:
    """Infer y."""
    _require("weight", weight, [weight[0], x[-1]])
    if bias is not None:
        _require("bias", bias, weight[:1])
    return [*x[:-1], weight[0]]


def dense_back(dy: Shape, weight: Shape) -> Shape:
    """Infer the gradient by x."""
    return [*dy[:-1], weight[1]]


def lora(
    x: Shape, weight: Shape, lora_a: Shape, lora_b: Shape, _: Shape, bias: Shape | None = None
) -> tuple[Shape, ...]:
    """Infer y, and the hidden rows."""
    _require("lora_a", lora_a, [lora_a[0], x[-1]])
    _require("lora_b", lora_b, [weight[0], lora_a[0]])
    return dense(x, weight, bias), [*x[:-1], lora_a[0]]


def lora_back(
    _: Shape, x: Shape, hidden: Shape, __: Shape, lora_a: Shape, lora_b: Shape, ___: Shape
) -> tuple[Shape, ...]:
    """Infer the gradients by x, lora_a, lora_b and the hidden rows."""
    return x, lora_a, lora_b, hidden


def attention(query: Shape, key: Shape, value: Shape, _: Shape, mask: Shape | None = None) -> tuple[Shape, Shape]:
    """Infer the output (batch, queries, heads, size), and two numbers for each query of each head."""
    batch, queries, heads, size = query
    key_heads = key[2] if heads % key[2] == 0 else heads
    _require("key", key, [batch, key[1], key_heads, size])
    _require("value", value, key)
    if mask is not None:
        rows = 1 if mask[2:3] == [1] else queries
        _require("mask", mask, [1 if mask[0] == 1 else batch, 1, rows, key[1]])
    return query, [batch, heads, queries, 2]


def row_losses(logits: Shape, labels: Shape) -> tuple[Shape, Shape]:
    """Infer a loss for each row, and two numbers for each row."""
    _require("labels", labels, logits[:-1])
    return labels, [*labels, 2]


def _require(name: str, found: Shape, expected: Shape) -> None:
    if len(found) != len(expected) or any(a != b and a >= 0 and b >= 0 for a, b in zip(found, expected, strict=False)):
        raise ValueError(f"{name} has the shape {tuple(found)}; expected is {tuple(expected)}: give tensors that fit.")
