"""Blocks: several operations in a row as one native operation with one gradient.

A graph of twelve transformer blocks has a thousand nodes, and MindSpore works on each of them for a millisecond when it
compiles. As one operation a block is a single node in each direction, and the library shares memory within it.

`Recorder` has the functions of `mindpet.kernels` that may stand in a block. Called with `Rows` in the place of tensors
they compute nothing and write down what is to be computed; `block_operation` makes an operation of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor

from mindpet.kernels.native import constants, operation
from mindpet.kernels.switch import library

__all__ = ["BlockOperation", "NotABlockError", "Recorder", "block_operation"]

_CODES = {
    name: code
    for code, name in enumerate(
        ("dense", "lora", "attention", "layer_norm", "rms_norm", "add", "gelu", "gelu_tanh", "silu_gate", "rotary")
    )
}  # as in block.hpp
_FIELDS = 7
_NONE = -1


class NotABlockError(Exception):
    """What was recorded holds something that a block cannot; the message says what."""


class Rows:
    """Stands for a float32 tensor (batch, length, columns) that will be there when the block runs."""

    dtype = mindspore.float32

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __add__(self, other: Any) -> Rows:
        return self.recorder.add(self, other)


class Beside:
    """Stands for an input that is no row and gets no gradient: a mask, or the sines of angles."""

    dtype = mindspore.float32


class Recorder:
    """Writes down what a block computes.

    Args:
        beside: How many inputs the block is given besides its rows.

    Attributes:
        rows: Stands for the rows.
        beside: Stand for what is given besides.
        parameters: The Parameters that were met, in the order of the block's inputs behind `rows` and `beside`.
    """

    def __init__(self, beside: int) -> None:
        self.rows = Rows(self)
        self.beside = [Beside() for _ in range(beside)]
        self.parameters: list[Parameter] = []
        self._trained: dict[int, Parameter] = {}
        self._steps: list[tuple[str, list[Any], list[Rows]]] = []

    def __getattr__(self, name: str) -> Any:
        raise NotABlockError(f"{name} cannot stand in a block")

    def gelu(self, x: Any) -> Rows:
        """As `kernels.gelu`."""
        return self._record("gelu", x)

    def gelu_tanh(self, x: Any) -> Rows:
        """As `kernels.gelu_tanh`."""
        return self._record("gelu_tanh", x)

    def silu_gate(self, gate: Any, x: Any) -> Rows:
        """As `kernels.silu_gate`."""
        return self._record("silu_gate", gate, self._rows(x))

    def add(self, x: Any, y: Any) -> Rows:
        """Write down x + y."""
        return self._record("add", x, self._rows(y))

    def layer_norm(
        self, x: Any, gamma: Any, beta: Any, epsilon: float, residual: Any = None, trains_scale: bool = True
    ) -> Rows:
        """As `kernels.layer_norm`."""
        other = None if residual is None else self._rows(residual)
        scale = [self._parameter(value, trains_scale) for value in (gamma, beta)]
        return self._record("layer_norm", x, other, *scale, epsilon, trains_scale)

    def rms_norm(self, x: Any, gamma: Any, epsilon: float, trains_scale: bool = True) -> Rows:
        """As `kernels.rms_norm`."""
        return self._record("rms_norm", x, None, self._parameter(gamma, trains_scale), epsilon, trains_scale)

    def add_rms_norm(
        self, x: Any, residual: Any, gamma: Any, epsilon: float, trains_scale: bool = True
    ) -> tuple[Rows, Rows]:
        """As `kernels.add_rms_norm`."""
        scale = self._parameter(gamma, trains_scale)
        normalised = self._record("rms_norm", x, self._rows(residual), scale, epsilon, trains_scale)
        total = Rows(self)
        self._steps[-1][2].append(total)
        return normalised, total

    def rotary(self, x: Any, cosine: Any, sine: Any, num_heads: int, interleaved: bool = False) -> Rows:
        """As `kernels.rotary`."""
        return self._record("rotary", x, self._beside(cosine), self._beside(sine), num_heads, interleaved)

    def dense_frozen(self, x: Any, weight: Any, bias: Any = None, trains_bias: bool = False) -> Rows:
        """As `kernels.dense_frozen`."""
        return self._dense(x, weight, bias, False, trains_bias)

    def dense_trained(self, x: Any, weight: Any, bias: Any = None) -> Rows:
        """As `kernels.dense_trained`."""
        return self._dense(x, weight, bias, True, bias is not None)

    def lora_dense(
        self, x: Any, weight: Any, bias: Any, lora_a: Any, lora_b: Any, scale: Any, trains_bias: bool = False
    ) -> Rows:
        """As `kernels.lora_dense`."""
        shift = None if bias is None else self._parameter(bias, trains_bias)
        frozen, factor = self._parameter(weight, False), self._parameter(scale, False)
        branch = self._parameter(lora_a, True), self._parameter(lora_b, True)
        return self._record("lora", x, frozen, shift, *branch, factor, trains_bias)

    def attention(
        self,
        query: Any,
        key: Any,
        value: Any,
        mask: Any,
        num_heads: int,
        dropout: Callable[..., Any] | None = None,
        num_key_heads: int | None = None,
        causal: bool = False,
    ) -> Rows:
        """As `kernels.attention`."""
        if dropout is not None:
            raise NotABlockError("attention with dropout cannot stand in a block")
        key_heads = num_heads if num_key_heads is None else num_key_heads
        shown = None if mask is None else self._beside(mask)
        return self._record("attention", query, self._rows(key), self._rows(value), shown, num_heads, key_heads, causal)

    def finished(self, result: Any) -> tuple[float, ...]:
        """Return the block as the library takes it, once its last operation has given `result`.

        Raises:
            NotABlockError: `result` is something else.
        """
        firsts = [values[0] for _, _, values in self._steps]
        if not firsts or result is not firsts[-1]:
            raise NotABlockError("a block returns what its last operation computes")
        read = {id(field) for _, fields, _ in self._steps for field in fields}
        if any(id(value) not in read for value in firsts[:-1]):
            raise NotABlockError("a block reads all that it computes")
        inputs = [self.rows, *self.beside, *self.parameters]
        results = [value for _, _, values in self._steps for value in values]
        places = {id(value): place for place, value in enumerate([*inputs, *results])}
        gradients = [0, *(places[key] for key in self._trained)]
        numbers: list[float] = [len(inputs), len(gradients), *gradients]
        for name, fields, _ in self._steps:
            written = [_NONE if field is None else places.get(id(field), field) for field in fields]
            numbers += [_CODES[name], *map(float, written), *[0.0] * (_FIELDS - len(written))]
        return tuple(map(float, numbers))

    def frozen(self) -> list[Parameter]:
        """Return the Parameters that get no gradient."""
        return [parameter for parameter in self.parameters if id(parameter) not in self._trained]

    def _dense(self, x: Any, weight: Any, bias: Any, trains_weight: bool, trains_bias: bool) -> Rows:
        shift = None if bias is None else self._parameter(bias, trains_bias)
        matrix = self._parameter(weight, trains_weight)
        return self._record("dense", x, matrix, shift, trains_weight, trains_bias)

    def _record(self, name: str, x: Any, *fields: Any) -> Rows:
        result = Rows(self)
        self._steps.append((name, [self._rows(x), *fields], [result]))
        return result

    def _rows(self, value: Any) -> Rows:
        if isinstance(value, Rows) and value.recorder is self:
            return value
        raise NotABlockError(f"{type(value).__name__} stands where a block has rows")

    def _beside(self, value: Any) -> Beside:
        if any(value is given for given in self.beside):
            return value
        raise NotABlockError(f"{type(value).__name__} stands where a block has one of its inputs")

    def _parameter(self, value: Any, trains: bool) -> Parameter:
        if not isinstance(value, Parameter) or value.dtype != mindspore.float32:
            raise NotABlockError(f"{type(value).__name__} stands where a block has a float32 Parameter")
        if not any(value is known for known in self.parameters):
            self.parameters.append(value)
        if trains:
            self._trained[id(value)] = value
        return value


@dataclass(frozen=True)
class BlockOperation:
    """A block as MindSpore calls it: `compute(fingerprint, *inputs)[0]` are its rows.

    Attributes:
        written: The block.
        number: What tells it apart within this process.
        compute: The operation.
        fingerprint: A constant by which the library sees that a graph means the block that has this number here.
    """

    written: tuple[float, ...]
    number: int
    compute: Any
    fingerprint: Tensor


_numbers: dict[tuple[float, ...], int] = {}


@cache
def block_operation(written: tuple[float, ...]) -> BlockOperation:
    """Make an operation of a finished block, the same one each time.

    Raises:
        NotABlockError: This process has as many different blocks as the library can tell apart.
    """
    define = library().mindpet_define_block
    define.restype = ctypes.c_float
    numbers = np.array(written, np.float32)
    number = _numbers.setdefault(written, len(_numbers))
    fingerprint = define(number, numbers.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(numbers.size))
    if fingerprint < 0:
        raise NotABlockError("this process has as many different blocks as the library can tell apart")
    inputs, count = int(written[0]), int(written[1])
    gradients = [int(place) for place in written[2 : 2 + count]]
    back = operation(f"block_back_{number}", 2 + inputs + 1, count + 1)
    bprop = _gradient_function(number, inputs, gradients, back)
    compute = operation(f"block_{number}", inputs + 1, 3, bprop)
    return BlockOperation(written, number, compute, constants(fingerprint))


def _gradient_function(number: int, inputs: int, gradients: list[int], back: Any) -> Any:
    """Return the gradient of a block: of its inputs `gradients` get one, and the others come back as they are.

    MindSpore knows no gradient function with any number of inputs, and reads a function's text: so it is written out,
    into a file that goes with the process.
    """
    names = [f"input{place}" for place in range(inputs)]
    results = [f"found[{gradients.index(place)}]" if place in gradients else name for place, name in enumerate(names)]
    text = (
        "def gradient_by(back):\n"
        f"    def bprop(fingerprint, {', '.join(names)}, out, dout):\n"
        f"        found = back(fingerprint, dout[0], out[1], {', '.join(names)})\n"
        f"        return (fingerprint, {', '.join(results)})\n"
        "    return bprop\n"
    )
    file = Path(_folder().name) / f"block_{number}.py"
    file.write_text(text)
    scope: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, str(file), "exec"), scope)
    return scope["gradient_by"](back)


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="mindpet_")
