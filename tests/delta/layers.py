"""The layers of the delta room with their formulas, and the helpers that its tests share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import AdapterDense, AdapterLayer, LoRADense, LowRankAdapterDense, LowRankAdapterLayer, _reference

INPUTS, OUTPUTS = 6, 4

NUMPY = {mstype.float32: np.float32, mstype.float16: np.float16}


@dataclass(frozen=True)
class Layer:
    """A dense layer class with small sizes; `formula(x, parameters, activation)` is its float64 reference."""

    cell: type
    sizes: dict[str, Any]
    formula: Callable
    has_base: bool = True

    def make(self, **arguments):
        return self.cell(**self.sizes, **arguments)

    def from_dense(self, dense, **arguments):
        added = {name: size for name, size in self.sizes.items() if name not in ("in_channels", "out_channels")}
        return self.cell.from_dense(dense, **added, **arguments)


_BASE = {"in_channels": INPUTS, "out_channels": OUTPUTS}

LORA = Layer(
    LoRADense,
    {**_BASE, "lora_rank": 2, "lora_alpha": 3},
    lambda x, parameters, activation: _reference.lora_dense(x, parameters, 1.5, activation),
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
# In a layer without a base the activation is the bottleneck's own.
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
DENSE_LAYERS = {"lora": LORA, "adapter_dense": ADAPTER_DENSE, "low_rank_adapter_dense": LOW_RANK_DENSE}
LAYERS = DENSE_LAYERS | {"adapter": ADAPTER, "low_rank_adapter": LOW_RANK}


class Side(nn.Cell):
    """Several cells on the same input, so that one graph serves many cases."""

    def __init__(self, cells):
        super().__init__()
        self.cells_side_by_side = nn.CellList(cells)

    def construct(self, *inputs):
        outputs = ()
        for cell in self.cells_side_by_side:
            outputs = outputs + (cell(*inputs),)  # noqa: RUF005
        return outputs


class Probed(nn.Cell):
    """The sum of a network's outputs weighted by fixed random numbers: a scalar that no gradient can hide from."""

    def __init__(self, network, probes):
        super().__init__()
        self.network = network
        self.probes = [Tensor(probe.astype(np.float32)) for probe in probes]

    def construct(self, *inputs):
        total = 0.0
        for output, probe in zip(self.network(*inputs), self.probes):  # noqa: B905, graph mode knows no `strict`
            total = total + (output.astype(mstype.float32) * probe).sum()
        return total


def randomise(cell, seed=0, spread=0.5):
    """Give every parameter, zero factors too, random values that float16 holds exactly; return the cell."""
    generator = np.random.default_rng(seed)
    for parameter in cell.get_parameters():
        values = (spread * generator.normal(size=parameter.shape)).astype(np.float16)
        parameter.set_data(Tensor(values).astype(parameter.dtype))
    return cell


def values_of(cell):
    """Return the parameters by their names inside the cell, in float64."""
    return {name: value.asnumpy().astype(np.float64) for name, value in cell.parameters_and_names()}


def random_input(shape, dtype=np.float32, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float16).astype(dtype)


def primitives_of(cell):
    """Return each primitive below `cell` by its path."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in cell.cells_and_names()
        for name, value in vars(part).items()
        if isinstance(value, ops.Primitive)
    }


def strategies_of(cell):
    """Return the stored strategy of each primitive below `cell` that has one."""
    stored = {path: primitive.attrs.get("in_strategy") for path, primitive in primitives_of(cell).items()}
    return {path: strategy for path, strategy in stored.items() if strategy is not None}
