"""From a name to an activation, and from one documented strategy to those of the activation's primitives."""

from collections.abc import Callable
from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

__all__ = [
    "ACTIVATIONS",
    "activation_strategies",
    "is_log_softmax",
    "make_activation",
    "make_twin",
    "normalises",
    "takes_rows",
]


class GELU(nn.Cell):
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), elementwise (arXiv:1606.08415)."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu = ops.GeLU()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.gelu(x)


class SiLU(nn.Cell):
    """X sigmoid(x), elementwise (arXiv:1606.08415)."""

    def __init__(self) -> None:
        super().__init__()
        self.sigmoid = ops.Sigmoid()
        self.mul = ops.Mul()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.mul(x, self.sigmoid(x))


class LeakyReLU(nn.Cell):
    """X where it is positive and alpha x elsewhere."""

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        self.alpha = alpha
        self.mul = ops.Mul()
        self.select_op = ops.Maximum() if alpha <= 1 else ops.Minimum()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.select_op(x, self.mul(x, self.alpha))


class HSwish(nn.Cell):
    """X min(max(x + 3, 0), 6) / 6, elementwise (arXiv:1905.02244)."""

    def __init__(self) -> None:
        super().__init__()
        self.hsigmoid = ops.HSigmoid()
        self.mul = ops.Mul()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.mul(x, self.hsigmoid(x))


class RReLU(nn.Cell):
    """max(x, 0) + slope min(x, 0), elementwise, each slope drawn anew from [1/8, 1/3) (arXiv:1505.00853)."""

    def __init__(self) -> None:
        super().__init__()
        self.maximum = ops.Maximum()
        self.minimum = ops.Minimum()
        self.uniform = ops.UniformReal()
        self.stretch = ops.Mul()
        self.shift = ops.Add()
        self.mul = ops.Mul()
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.shape_op = ops.Shape()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        slope = self.shift(self.stretch(self.uniform(self.shape_op(x)), 1 / 3 - 1 / 8), 1 / 8)
        return self.add(self.maximum(x, 0.0), self.mul(self.minimum(x, 0.0), self.cast(slope, x.dtype)))


class Softmin(nn.Cell):
    """softmax(-x) over one axis."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.neg = ops.Neg()
        self.softmax = ops.Softmax(axis)

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.softmax(self.neg(x))


class Tanhshrink(nn.Cell):
    """X - tanh(x), elementwise."""

    def __init__(self) -> None:
        super().__init__()
        self.tanh = ops.Tanh()
        self.sub = ops.Sub()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.sub(x, self.tanh(x))


class Hardtanh(nn.Cell):
    """X clipped to [min_val, max_val], elementwise."""

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        self.min_val = min_val
        self.max_val = max_val
        self.maximum = ops.Maximum()
        self.minimum = ops.Minimum()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.minimum(self.maximum(x, self.min_val), self.max_val)


class PReLUExt(nn.Cell):
    """max(x, 0) + weight min(x, 0), elementwise, with one trainable weight that starts at 0.25 (arXiv:1502.01852)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Parameter(Tensor([0.25], mstype.float32), name="weight")
        self.prelu = ops.PReLU()
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        """Return the activation of `x`, same shape and dtype."""
        return self.prelu(x, self.cast(self.weight, x.dtype))


# The names that nn.get_activation knows, save 'threshold', which it cannot build. MindSpore's own cells serve where
# they hold a primitive that takes a strategy. On the two axes that a dense layer has, LogSoftmaxExt is LogSoftmax.
ACTIVATIONS: dict[str, Callable[[], nn.Cell]] = {
    "softmin": Softmin,
    "softmax": nn.Softmax,
    "softmax2d": nn.Softmax2d,
    "logsoftmax": nn.LogSoftmax,
    "logsoftmaxExt": nn.LogSoftmax,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "rrelu": RReLU,
    "silu": SiLU,
    "tanh": nn.Tanh,
    "tanhshrink": Tanhshrink,
    "hardtanh": Hardtanh,
    "gelu": GELU,
    "fast_gelu": nn.FastGelu,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "prelu": nn.PReLU,
    "preluExt": PReLUExt,
    "leakyrelu": LeakyReLU,
    "hswish": HSwish,
    "hsigmoid": nn.HSigmoid,
    "logsigmoid": nn.LogSigmoid,
    "softshrink": nn.SoftShrink,
    "hshrink": nn.HShrink,
    "mish": nn.Mish,
}


def make_activation(activation: str | nn.Cell | ops.Primitive | None) -> nn.Cell | ops.Primitive | None:
    """Return the activation that a checked name stands for; anything else is returned as it is."""
    return ACTIVATIONS[activation]() if isinstance(activation, str) else activation


# MindSpore's cells that hold no primitive which the planner can split, and their equals that do.
_TWINS: dict[type[nn.Cell], Callable[[Any], nn.Cell | None]] = {
    nn.GELU: lambda cell: GELU() if cell.approximate == "tanh" else None,
    nn.HSwish: lambda cell: HSwish(),
    nn.Hardtanh: lambda cell: Hardtanh(cell.min_val, cell.max_val),
    nn.LeakyReLU: lambda cell: LeakyReLU(cell.alpha),
    nn.SiLU: lambda cell: SiLU(),
    nn.Softmin: lambda cell: Softmin(cell.axis),
    nn.Tanhshrink: lambda cell: Tanhshrink(),
}


def make_twin(activation: Any) -> nn.Cell | None:
    """Return a cell that computes what `activation` does and holds primitives to shard; None where none is needed."""
    return _TWINS[type(activation)](activation) if type(activation) in _TWINS else None


def takes_rows(activation: Any) -> bool:
    """Say whether `activation` may be given (rows, channels); Softmax2d needs the axes before the last two."""
    return not isinstance(activation, nn.Softmax2d)


def normalises(activation: Any) -> bool:
    """Say whether `activation` mixes the channels, so that one device needs all of a row."""
    return isinstance(activation, (nn.Softmax, nn.LogSoftmax, Softmin, nn.Softmin, ops.Softmax, ops.LogSoftmax))


def is_log_softmax(activation: nn.Cell | ops.Primitive) -> bool:
    """Say whether `activation` is LogSoftmax, which MindPet documents as not supported in parallel modes."""
    return isinstance(activation, (nn.LogSoftmax, ops.LogSoftmax))


def _alone(split: tuple) -> tuple:
    return (split,)


def _with_scalar(split: tuple) -> tuple:
    return (split, ())


def _with_tensor(split: tuple) -> tuple:
    return (split, split)


def _with_vector(split: tuple) -> tuple:
    return (split, (1,))


# How the split of the one input reaches each primitive of a cell that has several, or one with several inputs.
_PRIMITIVES: dict[type[nn.Cell], dict[str, Callable[[tuple], tuple]]] = {
    HSwish: {"hsigmoid": _alone, "mul": _with_tensor},
    Hardtanh: {"maximum": _with_scalar, "minimum": _with_scalar},
    LeakyReLU: {"mul": _with_scalar, "select_op": _with_tensor},
    PReLUExt: {"prelu": _with_vector},
    RReLU: {
        "maximum": _with_scalar,
        "minimum": _with_scalar,
        "uniform": _alone,
        "stretch": _with_scalar,
        "shift": _with_scalar,
        "mul": _with_tensor,
        "add": _with_tensor,
    },
    SiLU: {"sigmoid": _alone, "mul": _with_tensor},
    Softmin: {"neg": _alone, "softmax": _alone},
    Tanhshrink: {"tanh": _alone, "sub": _with_tensor},
    nn.LogSigmoid: {"mul": _with_scalar, "exp": _alone, "add": _with_scalar, "rec": _alone, "log": _alone},
    nn.PReLU: {"prelu": _with_vector},
    nn.Softmax2d: {"softmax": _alone},
}


def activation_strategies(
    activation: nn.Cell | ops.Primitive, strategy: tuple
) -> list[tuple[ops.Primitive, tuple[Any, ...]]]:
    """Return the primitives of `activation`, each with the strategy that follows from the one given for its input.

    The list is empty where the activation is a cell that holds no primitive of its own or several of unknown use.
    """
    if isinstance(activation, ops.Primitive):
        return [(activation, strategy)]
    if type(activation) in _PRIMITIVES:
        own = {name: widen(strategy[0]) for name, widen in _PRIMITIVES[type(activation)].items()}
        # An entry beyond a primitive's inputs stays, so that the planner refuses it as for any other activation.
        return [(getattr(activation, name), split + strategy[len(split) :]) for name, split in own.items()]
    primitives = [value for value in vars(activation).values() if isinstance(value, ops.Primitive)]
    return [(primitives[0], strategy)] if len(primitives) == 1 else []
