"""What is attached to a network: one plain object on it, which no `construct` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.places import Place
from mindpet.tuning.targets import TargetMatch
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK

__all__ = [
    "STATE_ATTRIBUTE",
    "STATE_MARK",
    "Feed",
    "NamedAdapter",
    "PeftState",
    "Replacement",
    "adapter_parameters",
    "check_at_work",
    "refuse_stacked",
    "require_state",
    "state_of",
]

STATE_ATTRIBUTE = "mindpet_state"


@dataclass(frozen=True)
class Replacement:
    """A layer that a delta cell has replaced.

    Attributes:
        path: Where it hangs first in the network.
        method: The method's name.
        places: Every place where it hangs.
        original: The plain layer.
        cell: The delta cell in its place, with the same Parameter objects.
    """

    path: str
    method: str
    places: tuple[Place, ...]
    original: nn.Cell
    cell: nn.Cell


@dataclass(frozen=True)
class Feed:
    """A cell that hands prefix keys and values to an attention.

    Attributes:
        path: The attention's path.
        method: The method's name.
        attention: The attention; its attribute `prefix` is the cell.
        cell: The cell.
    """

    path: str
    method: str
    attention: nn.Cell
    cell: nn.Cell


@dataclass
class NamedAdapter:
    """The values that one adapter has for the parameters of a network.

    Attributes:
        configs: What it was made from.
        matches: What each entry of the configurations has matched.
        paths: Where it has a cell.
        shapes: The shape of each of its parameters, by the name that the network's has. This one may be larger.
        values: Their values and those of the marked parameters, on the host; of the active adapter those from before
            it was activated.
    """

    configs: tuple[PeftConfig, ...]
    matches: tuple[TargetMatch, ...]
    paths: frozenset[str]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class PeftState:
    """What `get_peft_model` has changed, and what undoing it needs.

    Attributes:
        configs: What was attached, in order; with several adapters, the active one's.
        replacements: The replaced layers, in the network's order.
        feeds: The prefix cells, in the network's order.
        aids: Where the network's own cells hold further cells, such as prefixes and tied heads need.
        children: Names of further cells that hang on the network itself, such as a prefix encoder.
        parameters: All parameters by the names that they had after attaching. A cell that is put around the network
            later may rename them, and these names hold on.
        marked: The network's own parameters that are trained and saved (biases, modules_to_save), by name, with a copy
            of each value before training.
        was_trainable: `requires_grad` of each parameter before attaching, by name.
        matches: What each entry of the configurations has matched.
        merged: What merging keeps; None while nothing is merged.
        sizes: For how large a rank or how many tokens there is room, by method.
        adapters: The adapters by name.
        active: The name of the one whose values the parameters hold, or hold again when it is enabled.
        enabled: Whether it is at work.
        stacked: What choosing an adapter for each example has put in; None where it is off.
    """

    configs: tuple[PeftConfig, ...]
    replacements: list[Replacement] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    aids: list[Place] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    marked: dict[str, np.ndarray] = field(default_factory=dict)
    was_trainable: dict[str, bool] = field(default_factory=dict)
    matches: tuple[TargetMatch, ...] = ()
    merged: Any = None
    sizes: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, NamedAdapter] = field(default_factory=dict)
    active: str = "default"
    enabled: bool = True
    stacked: Any = None

    @property
    def own_replacements(self) -> list[Replacement]:
        """The replaced layers in which the active adapter has a part."""
        return [one for one in self.replacements if one.path in self.adapters[self.active].paths]

    @property
    def own_feeds(self) -> list[Feed]:
        """The prefix cells in which the active adapter has a part."""
        return [one for one in self.feeds if one.path in self.adapters[self.active].paths]

    @property
    def cells(self) -> dict[str, Any]:
        """The cells of the methods, by path."""
        replaced: dict[str, Any] = {one.path: one.cell for one in self.replacements}
        return replaced | {one.path: one.cell for one in self.feeds}


def state_of(network: nn.Cell) -> PeftState | None:
    """Return what is attached to a network, or None."""
    return getattr(network, STATE_ATTRIBUTE, None)


def require_state(network: nn.Cell) -> PeftState:
    """Return what is attached to a network.

    Raises:
        InputError: Nothing is attached.
    """
    state = state_of(network)
    if state is None:
        raise InputError(
            f"nothing is attached to this {type(network).__name__}; call get_peft_model on this very cell first"
        )
    return state


def adapter_parameters(network: nn.Cell) -> dict[str, Parameter]:
    """Return what the active adapter's file holds, by canonical name: the methods' parameters and the marked ones.

    A parameter may be larger than the adapter's part of it, and holds zeros beyond.

    Raises:
        InputError: Nothing is attached.
    """
    state = require_state(network)
    own = state.adapters[state.active].shapes
    return {
        canonical_name(name): parameter
        for name, parameter in state.parameters.items()
        if STATE_MARK not in name and ((DELTA_MARK in name and name in own) or name in state.marked)
    }


def refuse_stacked(state: PeftState) -> None:
    """Refuse a network in which each example has an adapter of its own (InputError)."""
    if state.stacked is not None:
        raise InputError("each example has an adapter of its own; call mindpet.unstack_adapters first")


def check_at_work(state: PeftState) -> None:
    """Refuse a network in which the active adapter is disabled or one of several that are stacked.

    Raises:
        InputError: It is.
    """
    refuse_stacked(state)
    if not state.enabled:
        raise InputError(f"the adapter {state.active} is disabled; call mindpet.enable_adapter first")
