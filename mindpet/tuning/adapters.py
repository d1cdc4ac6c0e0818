"""Several adapters by name on one network: sets of values for the same parameters, of which one is at work.

The values of the others are kept on the host. Switching writes values into the network's parameters and changes no
graph, so that nothing is compiled, whatever holds the network: a Model, a training step, functions under `ms.jit`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import nn

from mindpet.tuning.attach import as_configs
from mindpet.tuning.capacity import plan_adapter_for, slots_by_name, write_adapter
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.moments import check_optimizer, reset_moments
from mindpet.tuning.state import NamedAdapter, PeftState, refuse_stacked, require_state
from mindpet.tuning.values import read_values
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = [
    "active_adapter",
    "add_adapter",
    "delete_adapter",
    "disable_adapter",
    "enable_adapter",
    "list_adapters",
    "set_adapter",
]


def add_adapter(network: nn.Cell, name: str, config: PeftConfig | Sequence[PeftConfig]) -> None:
    """Add an adapter that starts as one that is attached anew; the active one stays active.

    Its rank, tokens and layers must fit what was attached (`max_rank`, `max_tokens`, `max_targets` of
    `get_peft_model`). It may have other values of `lora_alpha`, the patterns, `use_rslora`, VeRA's seed and the like.
    What a graph is built from must be the same: the variant of LoRA, an activation, `modules_to_save`, trained biases.
    Rates of dropout and how parameters start may differ; the attached network's rates count.

    Args:
        network: A network with something attached.
        name: A name that no other adapter of the network has.
        config: One configuration, or a list; of the attached methods, some may be left out.

    Raises:
        InputError: Nothing is attached, it is merged or stacked, the name is taken, or the adapter does not fit; the
            message names the capacity that it needs.
        TypeError: `network` is no Cell, `name` no text or `config` no configuration.
    """
    configs = as_configs(network, config)
    state = require_changeable(network)
    check_new_name(state, name)
    state.adapters[name] = plan_adapter_for(network, state, configs)


def set_adapter(network: nn.Cell, name: str, optimizer: nn.Optimizer | None = None) -> None:
    """Let another adapter be at work, and enable it; the values of the one before are kept.

    The moments of an optimizer belong to the adapter that it has trained, and would move the parameters of the next
    one, even those that it does not have. Who trains on gives the optimizer, or makes a new one.

    Args:
        network: A network with something attached.
        name: The adapter's name; that of the active one may be given too.
        optimizer: Its moments start anew, if another adapter than the active one is named. Its learning rate and count
            of steps stay.

    Raises:
        InputError: Nothing is attached, it is merged or stacked, no adapter has the name, or the optimizer trains
            something else or is of a kind whose moments are not known.
        TypeError: `optimizer` is no optimizer.
    """
    state = require_changeable(network)
    adapter = _find(state, name)
    if optimizer is not None:
        check_optimizer(optimizer, state.parameters)
    if name == state.active:
        enable_adapter(network)
        return
    _keep_active(state)
    write_adapter(state, adapter.values)
    state.active, state.enabled = name, True
    state.configs, state.matches = adapter.configs, adapter.matches
    if optimizer is not None:
        reset_moments(optimizer)


def disable_adapter(network: nn.Cell) -> None:
    """Let no adapter be at work: the network computes what it did before attaching, and nothing is trained.

    The active adapter's values are kept, and `enable_adapter` or `set_adapter` bring them back. Its own trained
    parameters (BitFit's biases, `modules_to_save`) have their values from before attaching meanwhile; these do train,
    so do not train a disabled network that has some.

    Raises:
        InputError: Nothing is attached, or it is merged or stacked.
    """
    state = require_changeable(network)
    if state.enabled:
        _keep_active(state)
        write_adapter(state, state.marked)
        state.enabled = False


def enable_adapter(network: nn.Cell) -> None:
    """Let the active adapter be at work again.

    Raises:
        InputError: Nothing is attached, or it is merged or stacked.
    """
    state = require_changeable(network)
    if not state.enabled:
        write_adapter(state, state.adapters[state.active].values)
        state.enabled = True


def delete_adapter(network: nn.Cell, name: str) -> None:
    """Forget an adapter.

    Raises:
        InputError: Nothing is attached, it is merged or stacked, no adapter has the name, or it is the active one.
    """
    state = require_changeable(network)
    _find(state, name)
    if name == state.active:
        raise InputError(f"{name} is the active adapter; set another one first, or take all off with mindpet.unload")
    del state.adapters[name]


def list_adapters(network: nn.Cell) -> list[str]:
    """Return the names of the adapters, in the order in which they were added.

    Raises:
        InputError: Nothing is attached.
    """
    return list(require_state(network).adapters)


def active_adapter(network: nn.Cell) -> str | None:
    """Return the name of the adapter that is at work; None while it is disabled.

    Raises:
        InputError: Nothing is attached.
    """
    state = require_state(network)
    return state.active if state.enabled else None


def require_changeable(network: nn.Cell) -> PeftState:
    """Return what is attached to a network, if its adapters may change.

    Raises:
        InputError: Nothing is attached, or it is merged or stacked.
    """
    state = require_state(network)
    if state.merged is not None:
        raise InputError("the active adapter is merged into the base weights; call mindpet.unmerge first")
    refuse_stacked(state)
    return state


def check_new_name(state: PeftState, name: str) -> None:
    """Refuse a name that is taken or no text."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"the adapter's name is {name!r}; give a text that is not empty")
    if name in state.adapters:
        raise InputError(f"the network has an adapter {name!r}; give another name, or delete that one first")


def current_values(state: PeftState, name: str) -> dict[str, np.ndarray]:
    """Return an adapter's values, of its own shapes, by parameter; those of the active one as they are now."""
    adapter = _find(state, name)
    if name != state.active or not state.enabled:
        return adapter.values
    slots = slots_by_name(state)
    values = {slot: slots[slot].read(shape) for slot, shape in adapter.shapes.items()}
    return values | {marked: read_values(state.parameters[marked]) for marked in state.marked}


def _find(state: PeftState, name: str) -> NamedAdapter:
    if name not in state.adapters:
        nearest = nearest_names(name, state.adapters, 1) if isinstance(name, str) else []
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise InputError(f"no adapter has the name {name!r}{hint}; there are {', '.join(state.adapters)}")
    return state.adapters[name]


def _keep_active(state: PeftState) -> None:
    state.adapters[state.active].values = current_values(state, state.active)
