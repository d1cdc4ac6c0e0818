"""What a configuration wants to change in a network, and what every plan begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mindspore import nn

from mindpet.tuning.config import PeftConfig
from mindpet.tuning.layers import Network
from mindpet.tuning.places import Place
from mindpet.tuning.targets import TargetMatch, match_targets

__all__ = ["Plan", "find_biases", "start_plan"]


@dataclass
class Plan:
    """What a configuration changes.

    Attributes:
        config: The configuration.
        cells: The new cell for each layer that is replaced, by the layer's path.
        feeds: The prefix cell for each attention that is fed, by the attention's path.
        aids: Further cells, such as prefixes and tied heads need, each with the place in a cell of the network where it
            hangs.
        children: Further cells that hang on the network itself, by their name there.
        trained: Names of the network's own parameters that are trained and saved.
        matches: What the entries of the configuration have matched.
    """

    config: PeftConfig
    cells: dict[str, nn.Cell] = field(default_factory=dict)
    feeds: dict[str, nn.Cell] = field(default_factory=dict)
    aids: list[tuple[Place, nn.Cell]] = field(default_factory=list)
    children: dict[str, nn.Cell] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)
    matches: list[TargetMatch] = field(default_factory=list)


def start_plan(network: Network, config: PeftConfig) -> Plan:
    """Return a plan that trains `modules_to_save`."""
    plan = Plan(config)
    holders = [path for path, cell in network.cells.items() if _names(cell)]
    for match in match_targets(config.method, "modules_to_save", config.modules_to_save, holders, "cell with weights"):
        plan.matches.append(match)
        for path in match.paths:
            plan.trained += _names(network.cells[path])
    return plan


def find_biases(network: Network, paths: Sequence[str] | None) -> list[str]:
    """Return the names of the biases below `paths`, or of the whole network."""
    cells = [network.root] if paths is None else [network.cells[path] for path in paths]
    return [name for cell in cells for name in _names(cell) if name.endswith("bias")]


def _names(cell: nn.Cell) -> list[str]:
    return [parameter.name for parameter in cell.get_parameters()]
