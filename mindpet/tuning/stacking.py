"""Give each example of a batch an adapter of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta.lora import LoRADense
from mindpet.delta.stacked_lora import StackedLoRADense
from mindpet.tuning.accelerate import plain_class
from mindpet.tuning.adapters import current_values, require_changeable
from mindpet.tuning.capacity import Slot, slots_of
from mindpet.tuning.compiled import forget_compiled, refuse_captured
from mindpet.tuning.layers import view_layer
from mindpet.tuning.state import PeftState, Replacement, require_state
from mindpet.tuning.values import write_values
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, SCALE, STATE_MARK

__all__ = ["Stacked", "set_adapter_index", "stack_adapters", "unstack_adapters"]


@dataclass(frozen=True)
class Stacked:
    """What stands in a network while each example has its own adapter.

    Attributes:
        names: The adapters, in the order in which they are stacked.
        index: Which of them each example has, (batch,), int32.
    """

    names: tuple[str, ...]
    index: Parameter


def stack_adapters(network: nn.Cell, names: Sequence[str] | None = None) -> None:
    """Put the values of several LoRA adapters side by side, so that each example of a batch has its own.

    All examples have the first one until `set_adapter_index` is called. The values are copied: while the adapters are
    stacked, none can be changed, trained, merged or saved. The network is compiled anew once.

    Args:
        network: A network with LoRA on dense layers attached.
        names: The adapters; None for all of the network.

    Raises:
        InputError: Nothing is attached, it is merged or stacked, a name is unknown or given twice, something else than
            LoRA on dense layers is attached (DoRA, an embedding, a prefix), or the adapters have different values for
            the network's own parameters, such as a head in `modules_to_save`.
        CompiledNetworkError: A function captured as bytecode lives that would not notice the change.
    """
    state = require_changeable(network)
    chosen = tuple(state.adapters) if names is None else tuple(names)
    if not chosen or len(set(chosen)) != len(chosen):
        raise InputError(f"names is {list(chosen)}; give each adapter once")
    found = [current_values(state, name) for name in chosen]
    _check_kinds(state)
    _check_own(state, chosen, found)
    refuse_captured()
    index = Parameter(Tensor([0], mstype.int32), name=f"{STATE_MARK}adapter_index", requires_grad=False)
    slots = slots_of(state)
    cells = [_stack(one, slots, found, index) for one in state.replacements]
    for replacement, cell in zip(state.replacements, cells, strict=True):
        for place in replacement.places:
            place.put(cell)
    state.stacked = Stacked(chosen, index)
    forget_compiled()


def set_adapter_index(network: nn.Cell, adapters: Sequence[str | int]) -> None:
    """Say which adapter each example of the next batch has. With a batch as large as before, nothing is compiled.

    This writes the Parameter `mindpet_state_adapter_index` (batch,), which all layers share.

    Args:
        network: A network whose adapters are stacked.
        adapters: For each example the name of an adapter, or its number in the order of stacking.

    Raises:
        InputError: The adapters are not stacked, an entry names none of them, or there is no entry.
    """
    stacked = _require_stacked(network)
    known = {name: number for number, name in enumerate(stacked.names)}
    known_numbers = {number: number for number in known.values()}
    numbers = []
    for entry in adapters:
        number = known.get(entry) if isinstance(entry, str) else known_numbers.get(entry)
        if number is None or isinstance(entry, bool):
            raise InputError(
                f"adapter_index has the entry {entry!r}; stacked are {', '.join(stacked.names)}, also known as 0 to"
                f" {len(known) - 1}"
            )
        numbers.append(number)
    if not numbers:
        raise InputError("adapter_index has no entry; give an adapter for each example")
    values = np.array(numbers, np.int32)
    if values.shape == tuple(stacked.index.shape):
        write_values([(stacked.index, values)])
        return
    stacked.index.set_data(Tensor(values), slice_shape=True)
    forget_compiled()


def unstack_adapters(network: nn.Cell) -> None:
    """Let the whole batch have the active adapter again. The network is compiled anew once.

    Raises:
        InputError: The adapters are not stacked.
        CompiledNetworkError: A function captured as bytecode lives that would not notice the change.
    """
    _require_stacked(network)
    refuse_captured()
    state = require_state(network)
    for replacement in state.replacements:
        for place in replacement.places:
            place.put(replacement.cell)
    state.stacked = None
    forget_compiled()


def _require_stacked(network: nn.Cell) -> Stacked:
    stacked = require_state(network).stacked
    if stacked is None:
        raise InputError("the adapters are not stacked; call mindpet.stack_adapters first")
    return stacked


def _check_kinds(state: PeftState) -> None:
    for path, cell in state.cells.items():
        kind = plain_class(cell)
        if kind is not LoRADense:
            raise InputError(
                f"{path} is a {kind.__name__}, and only LoRA on dense layers can be chosen for each example; run"
                " the examples of each adapter as a batch of their own, after mindpet.set_adapter"
            )
    if not state.cells:
        raise InputError("no layer has a LoRA branch, so there is nothing to choose for each example; attach LoRA")


def _check_own(state: PeftState, names: Sequence[str], found: Sequence[dict[str, np.ndarray]]) -> None:
    for name in state.marked:
        other = next((k for k, values in enumerate(found) if not np.array_equal(values[name], found[0][name])), None)
        if other is not None:
            raise InputError(
                f"{name} of the network itself was trained, and {names[0]} and {names[other]} have different values for"
                " it, which cannot be chosen for each example; run the examples of each adapter as a batch of their own"
            )


def _stack(
    replacement: Replacement, slots: dict[tuple[str, str], Slot], found: Sequence[dict[str, np.ndarray]], index: Any
) -> StackedLoRADense:
    """Return the layer with all adapters' factors, zeros where one has none."""
    path = replacement.path
    names = (f"{DELTA_MARK}lora_a", f"{DELTA_MARK}lora_b", SCALE)
    stacks = [
        np.stack([slots[path, inner].fill(values.get(slots[path, inner].name)) for values in found]) for inner in names
    ]
    view = view_layer(path, replacement.original)
    cell: Any = replacement.cell
    layer = StackedLoRADense(view.layer, stacks[0], stacks[1], stacks[2], index, cell.compute_dtype)
    layer.set_train(cell.training)
    return layer
