"""The active adapter of a network as writing for others needs it: its own values, each at its place."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from mindspore import nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.capacity import AttachedNetwork, Slot, slots_of
from mindpet.tuning.exchange.own import read_own
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.state import PeftState
from mindpet.utils.names import file_name

__all__ = ["ActiveAdapter"]


class ActiveAdapter:
    """The active adapter of a network, without the room for others.

    Args:
        net: The network, with one method attached.
        state: What is attached to it.

    Attributes:
        net: The network.
        state: What is attached to it.
        config: The method's configuration.
        view: The network's cells as they were before attaching.
        saved: The paths of the cells of `modules_to_save`.
    """

    def __init__(self, net: nn.Cell, state: PeftState) -> None:
        self.net, self.state = net, state
        (self.config,) = state.configs
        self.view = AttachedNetwork(net, state)
        matched = (path for match in state.matches if match.field == "modules_to_save" for path in match.paths)
        self.saved = list(dict.fromkeys(matched))

    @cached_property
    def values(self) -> dict[str, HostTensor]:
        """Its own values, by canonical name."""
        return read_own(self.net)

    @cached_property
    def slots(self) -> dict[tuple[str, str], Slot]:
        """The parameters of the attached cells, by the cell's path and the parameter's name in it."""
        return slots_of(self.state)

    def parts(self, paths: Iterable[str]) -> dict[str, dict[str, HostTensor]]:
        """Return the values of attached cells, by the cell's path and the parameter's name in it."""
        parts: dict[str, dict[str, HostTensor]] = {path: {} for path in paths}
        for (path, inner), slot in self.slots.items():
            name = canonical_name(slot.name)
            if path in parts and name in self.values:
                parts[path][inner] = self.values[name]
        return parts

    @property
    def trained(self) -> dict[str, HostTensor]:
        """The network's own trained tensors, by their names in Hugging Face files."""
        return {file_name(name): self.values[canonical_name(name)] for name in self.state.marked}

    @property
    def base(self) -> dict[str, HostTensor]:
        """The same before training."""
        return {
            file_name(name): HostTensor(values, self.values[canonical_name(name)].dtype)
            for name, values in self.state.marked.items()
        }

    def entries(self, field: str) -> list[str]:
        """Return what the configuration, or the architecture, names in a field."""
        return [match.entry for match in self.state.matches if match.field == field]
