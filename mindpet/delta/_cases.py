"""Small layers beside their float64 formulas, and how the two are compared, for tests and for the self-test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta import _reference
from mindpet.delta._reference import Array
from mindpet.delta.adapter import AdapterDense, AdapterLayer
from mindpet.delta.dora import DoRADense
from mindpet.delta.ia3 import IA3Dense
from mindpet.delta.lora import LoRADense
from mindpet.delta.low_rank_adapter import LowRankAdapterDense, LowRankAdapterLayer
from mindpet.delta.pissa import PiSSADense
from mindpet.delta.vera import VeRADense

__all__ = [
    "ADAPTER",
    "ADAPTER_DENSE",
    "DENSE_LAYERS",
    "DORA",
    "IA3",
    "IA3_FEEDFORWARD",
    "INPUTS",
    "LAYERS",
    "LORA",
    "LOW_RANK",
    "LOW_RANK_DENSE",
    "OUTPUTS",
    "PISSA",
    "VERA",
    "Layer",
    "Probed",
    "Side",
    "central_differences",
    "random_input",
    "randomise",
    "values_of",
]

INPUTS, OUTPUTS = 6, 4

CellT = TypeVar("CellT", bound=nn.Cell)


@dataclass(frozen=True)
class Layer:
    """A layer class with small sizes and its formula.

    Attributes:
        cell: The class.
        sizes: The arguments that it must have.
        formula: `formula(x, parameters, activation)` in NumPy. In a layer without a base the activation is the
            bottleneck's own.
        has_base: Whether it is a dense layer, with bias and activation, or maps INPUTS to INPUTS.
        detached: What the formula takes from the parameters and the gradient leaves out, as further entries for them.
    """

    cell: type
    sizes: dict[str, Any]
    formula: Callable[..., Array]
    has_base: bool = True
    detached: Callable[[dict[str, Array]], dict[str, Array]] = lambda parameters: {}

    def make(self, **arguments: Any) -> nn.Cell:
        """Return a cell of these sizes."""
        return self.cell(**self.sizes, **arguments)

    def from_dense(self, dense: nn.Dense, **arguments: Any) -> nn.Cell:
        """Return a cell of these sizes that takes over `dense`."""
        added = {name: size for name, size in self.sizes.items() if name not in ("in_channels", "out_channels")}
        return self.cell.from_dense(dense, **added, **arguments)  # type: ignore[attr-defined]


_BASE = {"in_channels": INPUTS, "out_channels": OUTPUTS}

LORA = Layer(
    LoRADense,
    {**_BASE, "lora_rank": 2, "lora_alpha": 3},
    lambda x, parameters, activation: _reference.lora_dense(x, parameters, 1.5, activation),
)
DORA = Layer(
    DoRADense,
    {**_BASE, "lora_rank": 2, "lora_alpha": 3},
    lambda x, parameters, activation: _reference.dora_dense(x, parameters, 1.5, activation),
    detached=lambda parameters: {"norm": _reference.dora_norm(parameters, 1.5)},
)
PISSA = Layer(
    PiSSADense,
    {**_BASE, "lora_rank": 2, "lora_alpha": 3},
    lambda x, parameters, activation: _reference.pissa_dense(x, parameters, 1.5, activation),
)
VERA = Layer(
    VeRADense,
    {**_BASE, "vera_rank": 3},
    lambda x, parameters, activation: _reference.vera_dense(x, parameters, activation),
)
IA3 = Layer(
    IA3Dense,
    _BASE,
    lambda x, parameters, activation: _reference.ia3_dense(x, parameters, False, activation),
)
IA3_FEEDFORWARD = Layer(
    IA3Dense,
    {**_BASE, "feedforward": True},
    lambda x, parameters, activation: _reference.ia3_dense(x, parameters, True, activation),
)
ADAPTER_DENSE = Layer(
    AdapterDense,
    {**_BASE, "bottleneck_size": 3},
    lambda x, parameters, activation: _reference.adapter_dense(x, parameters, "gelu", activation),
)
LOW_RANK_DENSE = Layer(
    LowRankAdapterDense,
    {**_BASE, "reduction_factor": 2, "low_rank_size": 2},
    lambda x, parameters, activation: _reference.low_rank_adapter_dense(x, parameters, "gelu", activation),
)
ADAPTER = Layer(
    AdapterLayer,
    {"hidden_size": INPUTS, "bottleneck_size": 3},
    lambda x, parameters, activation: _reference.adapter(x, parameters, activation),
    has_base=False,
)
LOW_RANK = Layer(
    LowRankAdapterLayer,
    {"hidden_size": INPUTS, "reduction_factor": 2, "low_rank_size": 2},
    lambda x, parameters, activation: _reference.low_rank_adapter(x, parameters, activation),
    has_base=False,
)
DENSE_LAYERS = {
    "lora": LORA,
    "dora": DORA,
    "pissa": PISSA,
    "vera": VERA,
    "ia3": IA3,
    "ia3_feedforward": IA3_FEEDFORWARD,
    "adapter_dense": ADAPTER_DENSE,
    "low_rank_adapter_dense": LOW_RANK_DENSE,
}
LAYERS = DENSE_LAYERS | {"adapter": ADAPTER, "low_rank_adapter": LOW_RANK}


class Side(nn.Cell):
    """Several cells on the same input, so that one graph serves many cases."""

    def __init__(self, cells: Sequence[nn.Cell]) -> None:
        super().__init__()
        self.cells_side_by_side = nn.CellList(cells)

    def construct(self, *inputs: Tensor) -> tuple[Any, ...]:
        """Return the outputs of all cells."""
        outputs: tuple[Any, ...] = ()
        for cell in self.cells_side_by_side:
            outputs = outputs + (cell(*inputs),)  # noqa: RUF005, graph mode knows only +
        return outputs


class Probed(nn.Cell):
    """The sum of a network's outputs weighted by fixed random numbers: a scalar that no gradient can hide from."""

    def __init__(self, network: nn.Cell, probes: Sequence[Array]) -> None:
        super().__init__()
        self.network = network
        self.probes = [Tensor(probe.astype(np.float32)) for probe in probes]

    def construct(self, *inputs: Tensor) -> Any:
        """Return the sum, a float32 scalar."""
        total = 0.0
        for output, probe in zip(self.network(*inputs), self.probes):  # noqa: B905, graph mode knows no `strict`
            total = total + (output.astype(mstype.float32) * probe).sum()
        return total


def randomise(cell: CellT, seed: int = 0, spread: float = 0.5) -> CellT:
    """Give every parameter, zero factors too, random values that each dtype holds exactly; return the cell.

    Whole numbers, which tell where something stands, are left as they are.
    """
    generator = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        if not parameter.dtype.is_floating_point:
            continue
        values = _shorten(spread * generator.normal(size=parameter.shape))
        parameter.set_data(Tensor(values.astype(np.float32)).astype(parameter.dtype))
    return cell


def values_of(cell: nn.Cell) -> dict[str, Array]:
    """Return the parameters by their names inside the cell, in float64."""
    return {
        name: value.astype(mstype.float32).asnumpy().astype(np.float64) for name, value in cell.parameters_and_names()
    }


def random_input(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 1) -> Array:
    """Return normally distributed numbers that each dtype holds exactly, as a NumPy array of `dtype`."""
    return _shorten(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def _shorten(values: Array) -> Array:
    """Round to eight significant bits, which float32, float16 and bfloat16 have."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.round(fraction * 256) / 256, exponent)


def central_differences(function: Callable[[], float], values: Array, step: float = 1e-6) -> Array:
    """Return the numeric gradient of `function`, which reads the float64 array `values`."""
    slopes = np.empty_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function()
        values[index] = kept - step
        slopes[index] = (above - function()) / (2 * step)
        values[index] = kept
    return slopes
