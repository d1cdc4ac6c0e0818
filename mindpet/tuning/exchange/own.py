"""The active adapter's own values: what files hold, without the room for others that a network's parameters have."""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.capacity import slots_by_name
from mindpet.tuning.exchange.values import HostTensor, read
from mindpet.tuning.state import adapter_parameters, require_state
from mindpet.tuning.values import crop, pad, write_values

__all__ = ["read_own", "write_own"]


def read_own(net: nn.Cell) -> dict[str, HostTensor]:
    """Copy the active adapter's values to the host, in its own shapes, by canonical name.

    Raises:
        InputError: Nothing is attached.
    """
    shapes, groups = _shapes(net)
    tensors = {name: read(parameter) for name, parameter in adapter_parameters(net).items()}
    return {
        name: HostTensor(crop(tensor.values, shapes[name], groups[name]), tensor.dtype) if name in shapes else tensor
        for name, tensor in tensors.items()
    }


def write_own(net: nn.Cell, tensors: Mapping[str, HostTensor]) -> None:
    """Write values of the active adapter's own shapes; whatever was compiled sees them.

    Raises:
        InputError: Nothing is attached.
    """
    shapes, groups = _shapes(net)
    parameters = adapter_parameters(net)
    write_values(
        (one, pad(values, tuple(one.shape), groups[name]) if name in shapes else values)
        for name, one, values in ((name, one, tensors[name].values) for name, one in parameters.items())
    )


def _shapes(net: nn.Cell) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the shape of each tensor of the active adapter, and into how many groups its first axis falls."""
    state = require_state(net)
    slots = slots_by_name(state)
    shapes = state.adapters[state.active].shapes
    return (
        {canonical_name(name): shape for name, shape in shapes.items()},
        {canonical_name(name): slots[name].groups for name in shapes},
    )
