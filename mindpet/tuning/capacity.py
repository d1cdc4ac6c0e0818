"""What fits the parameters of an attached network: a plan's own values as a part of them, padded with zeros.

Padding is neutral in every method. With LoRA, the rows of A and the columns of B beyond the rank are both zero, so that
neither gets a gradient (each one's is a product with the other); so it is with the two factors of a low-rank adapter,
with a bottleneck whose activation maps 0 to 0, and in VeRA with rows of zeros in the shared A. Tokens beyond an
adapter's own are hidden, or no token of the vocabulary points at them. Where an adapter lacks a layer, its scale is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from mindpet.delta.lora_conv2d import LoRAConv2d
from mindpet.tuning.accelerate import plain_class
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.layers import Network
from mindpet.tuning.plans.plan import Plan
from mindpet.tuning.registry import METHODS
from mindpet.tuning.state import NamedAdapter, PeftState
from mindpet.tuning.values import crop, pad, read_values, write_values
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK

__all__ = ["AttachedNetwork", "Slot", "enlarge", "plan_adapter_for", "slots_by_name", "slots_of", "write_adapter"]

_TRAINING_ONLY = ("dropout", "_rate", "_prob", "_init")  # ends of fields that do not matter for what is computed
_CHECKED_BY_PLACE = {"target_modules", "modules_to_save", "bias"}
_NEUTRAL = {  # activations that map 0 to 0 and each unit by itself
    *("relu", "relu6", "rrelu", "silu", "tanh", "tanhshrink", "hardtanh", "gelu", "fast_gelu", "elu", "softsign"),
    *("prelu", "preluExt", "leakyrelu", "hswish", "softshrink", "hshrink", "mish"),
}


@dataclass(frozen=True)
class Slot:
    """A parameter of an attached network of which adapters fill a part.

    Attributes:
        name: Its name after attaching.
        parameter: The parameter.
        groups: Into how many parts its first axis falls, each filled by itself.
    """

    name: str
    parameter: Parameter
    groups: int

    def fill(self, values: np.ndarray | None) -> np.ndarray:
        """Return an adapter's values in the parameter's shape; zeros where it has none."""
        shape = tuple(self.parameter.shape)
        return np.zeros(shape, read_values(self.parameter).dtype) if values is None else pad(values, shape, self.groups)

    def read(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the part of the parameter that an adapter fills."""
        return crop(read_values(self.parameter), shape, self.groups)


class AttachedNetwork(Network):
    """An attached network as it was before attaching, so that more can be planned for it.

    Args:
        root: The network.
        state: What is attached to it.
    """

    def __init__(self, root: nn.Cell, state: PeftState) -> None:
        super().__init__(root)
        originals = {id(one.cell): one.original for one in state.replacements}
        added = {id(one.cell) for one in state.feeds} | {id(root.name_cells().get(name)) for name in state.children}
        added |= {id(getattr(place.parent, place.name)) for place in state.aids}
        cells: dict[str, nn.Cell] = {}
        hidden: list[str] = []
        for path, cell in self.cells.items():
            if any(path.startswith(f"{outer}.") for outer in hidden) or id(cell) in added:
                hidden += [path] if id(cell) in added else []
                continue
            if id(cell) in originals:
                hidden.append(path)
                cell = originals[id(cell)]
                cells |= {f"{path}.{inner}": child for inner, child in cell.cells_and_names() if inner}
            cells[path] = cell
        self.cells = cells


def enlarge(config: PeftConfig, max_rank: int | None, max_tokens: int | None, max_targets: Any = None) -> PeftConfig:
    """Return the configuration of a network with room for more than `config` needs.

    Raises:
        InputError: The room is too small for `config` itself.
    """
    wanted = {"max_rank": max_rank, "max_tokens": max_tokens}[config.capacity]
    if wanted is not None and config.size_field is not None:
        if wanted < config.size:
            raise InputError(f"{config.method} needs {config.capacity}={config.size}, and {wanted} is given; give more")
        config = config.enlarged(wanted)
    if max_targets is not None and "target_modules" in type(config).model_fields:
        targets = max_targets if isinstance(max_targets, str) else tuple(max_targets)
        config = config.model_copy(update={"target_modules": targets})
    return config


def slots_of(state: PeftState) -> dict[tuple[str, str], Slot]:
    """Return what adapters fill, by the path of the attached cell and the parameter's name in it."""
    # A cell that was put around the network may have renamed a parameter since, and training may have brought its own.
    names = {id(parameter): name for name, parameter in state.parameters.items() if _is_added(name)}
    return {
        (path, inner): Slot(names[id(parameter)], parameter, _groups(cell, inner))
        for path, cell in state.cells.items()
        for inner, parameter in cell.parameters_and_names()
        if id(parameter) in names
    }


def slots_by_name(state: PeftState) -> dict[str, Slot]:
    """Return what adapters fill, each parameter once."""
    return {slot.name: slot for slot in slots_of(state).values()}


def write_adapter(state: PeftState, values: Mapping[str, np.ndarray]) -> None:
    """Write an adapter's values; zeros, which switch off, wherever it has none."""
    changes = [(slot.parameter, slot.fill(values.get(name))) for name, slot in slots_by_name(state).items()]
    write_values(changes + [(state.parameters[name], values[name]) for name in state.marked])


def plan_adapter_for(
    network: nn.Cell, state: PeftState, configs: Sequence[PeftConfig], plans: Sequence[Plan] | None = None
) -> NamedAdapter:
    """Return a new adapter with its starting values, if it fits what is attached.

    Args:
        network: The network.
        state: What is attached to it.
        configs: What the adapter is made from.
        plans: The plan of each; None where they are still to be made.

    Raises:
        InputError: It does not fit; the message says what would.
    """
    _check_methods(state, configs)
    if plans is None:
        view = AttachedNetwork(network, state)
        plans = [METHODS[one.method].plan(view, one, None) for one in configs]
    cells = {path: cell for plan in plans for path, cell in (plan.cells | plan.feeds).items()}
    _check_places(state, plans)
    _check_marked(network, state, plans)
    slots = slots_of(state)
    values = {}
    for path, inner, parameter in [
        (path, inner, parameter)
        for path, cell in cells.items()
        for inner, parameter in cell.parameters_and_names()
        if _is_added(parameter.name)
    ]:
        slot = slots.get((path, inner))
        if slot is None or any(own > room for own, room in zip(parameter.shape, slot.parameter.shape, strict=True)):
            raise InputError(f"{inner} of {path} is {tuple(parameter.shape)} large, for which there is no room")
        values[slot.name] = read_values(parameter)
    shapes = {name: value.shape for name, value in values.items()}
    matches = tuple(match for plan in plans for match in plan.matches)
    return NamedAdapter(tuple(configs), matches, frozenset(cells), shapes, values | state.marked)


def _is_added(name: str) -> bool:
    return DELTA_MARK in name or STATE_MARK in name


def _groups(cell: Any, inner: str) -> int:
    return cell.group if isinstance(cell, LoRAConv2d) and inner == f"{DELTA_MARK}lora_a" else 1


def _check_methods(state: PeftState, configs: Sequence[PeftConfig]) -> None:
    """Check everything that a configuration itself says."""
    attached = {one.method: one for adapter in state.adapters.values() for one in adapter.configs}
    for config in configs:
        if config.method not in state.sizes:
            raise InputError(
                f"the adapter needs {config.method}, and attached is {', '.join(state.sizes)}; attach all methods as a"
                " list"
            )
        room = state.sizes[config.method]
        if config.size > room:
            raise InputError(
                f"the adapter needs room for {config.size} ({config.method}: {config.size_field}), and there is room"
                f" for {room}; attach with {config.capacity}={config.size}"
            )
        if config.method == "adapter" and config.size < room and config.non_linearity not in _NEUTRAL:  # type: ignore[attr-defined]
            raise InputError(
                f"a bottleneck smaller than the {room} attached needs an activation that maps 0 to 0, which"
                f" {config.non_linearity} does not; give bottleneck_size={room}"  # type: ignore[attr-defined]
            )
        if config.method in attached:
            _check_fields(attached[config.method], config)


def _check_fields(attached: PeftConfig, config: PeftConfig) -> None:
    """Refuse another value of a field that is built into the graph."""
    for name, value in config.model_dump().items():
        other = getattr(attached, name)
        fixed = name not in config.switched | _CHECKED_BY_PLACE and not name.endswith(_TRAINING_ONLY)
        if fixed and value != other:
            raise InputError(
                f"the adapter has {config.method} with {name} {value!r}, and attached is {other!r}, which is no value"
                f" that can be switched; give {name}={other!r}"
            )


def _check_places(state: PeftState, plans: Sequence[Plan]) -> None:
    """Check that an attached cell of the same kind stands wherever an adapter has one."""
    attached = state.cells
    for plan in plans:
        cells = plan.cells | plan.feeds
        if missing := [path for path in cells if path not in attached]:
            raise InputError(
                f"the adapter needs {plan.config.method} at {missing[0]} and {len(missing) - 1} other places, where"
                " nothing is attached; attach with max_targets that name these too"
            )
        for path, cell in cells.items():
            other = attached[path]
            if plain_class(cell) is not plain_class(other) or getattr(cell, "feedforward", None) != getattr(
                other, "feedforward", None
            ):
                raise InputError(
                    f"the adapter needs another kind of {plan.config.method} at {path} than the one attached"
                    f" ({plain_class(other).__name__}); give the configuration the same variant and feedforward_modules"
                )


def _check_marked(network: nn.Cell, state: PeftState, plans: Sequence[Plan]) -> None:
    """Check that the adapter trains the same parameters of the network itself: these cannot be switched off."""
    names = {id(parameter): name for name, parameter in state.parameters.items()}
    now = {parameter.name: names[id(parameter)] for parameter in network.get_parameters() if id(parameter) in names}
    wanted = {now[name] for plan in plans for name in plan.trained if DELTA_MARK not in name}
    if different := sorted(wanted ^ state.marked.keys()):
        trains = "trains" if different[0] in wanted else "does not train"
        raise InputError(
            f"the adapter {trains} {different[0]} of the network itself, unlike what is attached"
            f" ({len(different)} such parameters); give it the same modules_to_save and biases"
        )
