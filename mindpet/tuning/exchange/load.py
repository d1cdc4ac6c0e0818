"""Loading an adapter, all of it or nothing, and proving that it was applied."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mindspore
from mindspore import nn

from mindpet.graph.load import check_network
from mindpet.tuning.adapters import active_adapter, add_adapter, delete_adapter, disable_adapter, set_adapter
from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.compiled import refuse_captured
from mindpet.tuning.exchange.adapter import Adapter, check_tensors
from mindpet.tuning.exchange.fit import check_attached, check_base, fit
from mindpet.tuning.exchange.own import read_own, write_own
from mindpet.tuning.exchange.probe import Outcome, has_effect, repeat_probes
from mindpet.tuning.exchange.report import LoadReport, UnverifiedAdapterWarning
from mindpet.tuning.exchange.sources import read_adapter
from mindpet.tuning.exchange.traceless import keep_random_state
from mindpet.tuning.exchange.values import HostTensor, digest
from mindpet.tuning.state import check_at_work, require_state, state_of
from mindpet.utils.exceptions import InputError

__all__ = ["load_adapter"]


def load_adapter(
    net: nn.Cell,
    path: str | os.PathLike[str],
    *,
    compute_dtype: mindspore.Type | None = None,
    adapter_name: str | None = None,
) -> LoadReport:
    """Load an adapter into a network, all of it or nothing, and check that it gives the outputs that it gave.

    A plain network gets the methods attached that the adapter's configuration names. One to which an equal
    configuration is attached already only gets new values; dropout rates and how parameters start may differ. Whatever
    was compiled gives the new results.

    Args:
        net: The network, with the base model's values in it.
        path: A folder that `save_adapter` wrote, or its `adapter_model.safetensors`; a folder of Hugging Face PEFT, or
            one that `export_adapter` wrote; a checkpoint `.ckpt` of MindPet 1.x, MindFormers or
            TrainableParamsCheckPoint, for a network that is attached; or a folder of MindFormers with
            `mindformers_adapter_config.json`.
        compute_dtype: As in `get_peft_model`, where loading attaches.
        adapter_name: The adapter that gets the values and is active then; a name that is new is added to an attached
            network, as by `add_adapter`. None for the active one, in a plain network 'default'.

    Returns:
        What was done. Files without a probe also give an `UnverifiedAdapterWarning`.

    Raises:
        TypeError: `net` is no Cell.
        InputError: The file is damaged or incomplete, its configuration is unknown or another than the attached one,
            the base is not the adapter's, or the probe gives other outputs. The network is as before then.
        CompiledNetworkError: As `get_peft_model`.
    """
    check_network(net)
    adapter = read_adapter(Path(path), net)
    check_tensors(adapter)
    state = state_of(net)
    undo = _prepare(net, adapter, adapter_name)
    try:
        rounded_to = check_base(net, adapter)
        if state is None:
            _attach(net, adapter, compute_dtype, adapter_name)
        outcome, changes = _apply(net, adapter, rounded_to)
    except BaseException:
        if state is None and state_of(net) is not None:
            detach(net)
        undo()
        raise
    report = LoadReport(
        path=str(path),
        methods=tuple(config.method for config in require_state(net).configs),
        attached=state is None,
        outcome=outcome,
        rounded_to=rounded_to,
        has_effect=changes,
    )
    if outcome is None:
        warnings.warn(str(report), UnverifiedAdapterWarning, stacklevel=2)
    return report


def _prepare(net: nn.Cell, adapter: Adapter, name: str | None) -> Callable[[], None]:
    """Activate the adapter that gets the values, and return what undoes that; or refuse.

    Raises:
        InputError: The file does not say enough, or does not fit the attached adapter.
    """
    state = state_of(net)
    is_new = state is None or (name is not None and name not in state.adapters)
    if is_new and adapter.configs is None:
        raise InputError(
            f"{adapter.path} does not say which methods it belongs to; attach them with get_peft_model, then load."
        )
    if state is None:
        return lambda: None
    refuse_captured()
    if name is None:
        check_attached(state, adapter)
        check_at_work(state)
        return lambda: None
    undo = _activate(net, adapter, name, is_new)
    try:
        check_attached(state, adapter)
    except InputError:
        undo()
        raise
    return undo


def _activate(net: nn.Cell, adapter: Adapter, name: str, is_new: bool) -> Callable[[], None]:
    """Activate the adapter with this name, a new one if need be, and return what undoes that."""
    before, at_work = require_state(net).active, active_adapter(net)
    if is_new:
        assert adapter.configs is not None
        with keep_random_state():  # new parameters get random values first
            add_adapter(net, name, adapter.configs)
    set_adapter(net, name)

    def undo() -> None:
        set_adapter(net, before)
        if at_work is None:
            disable_adapter(net)
        if is_new:
            delete_adapter(net, name)

    return undo


def _attach(net: nn.Cell, adapter: Adapter, compute_dtype: mindspore.Type | None, name: str | None) -> None:
    assert adapter.configs is not None
    try:
        with keep_random_state():  # new parameters get random values first
            get_peft_model(net, adapter.configs, compute_dtype, adapter_name="default" if name is None else name)
    except InputError as error:
        raise type(error)(f"{adapter.path} cannot be attached: {error}") from error


def _apply(net: nn.Cell, adapter: Adapter, rounded_to: Sequence[str]) -> tuple[Outcome | None, bool]:
    """Write the adapter's values, and check that they are there and what they give; or leave all as it was.

    Returns:
        How the probes came out, None where there is none, and whether the adapter has an effect.
    """
    state = require_state(net)
    before = read_own(net)
    tensors = fit(net, adapter, before, state.marked.keys() if rounded_to else ())
    try:
        write_own(net, tensors)
        return _verify(net, adapter, tensors, rounded_to), has_effect(net, state)
    except BaseException:
        write_own(net, before)
        raise


def _verify(
    net: nn.Cell, adapter: Adapter, tensors: Mapping[str, HostTensor], rounded_to: Sequence[str]
) -> Outcome | None:
    """Check what the parameters hold now, and the probes; None where there is no probe.

    Raises:
        InputError: A probe gives other outputs.
    """
    for name, tensor in read_own(net).items():
        if digest(tensor) != digest(tensors[name]):
            raise InputError(f"{name} does not hold what was written into it; check the device")
    if adapter.record is None:
        return None
    try:
        outcome = repeat_probes(net, require_state(net), adapter.record, rounded_to)
    except InputError as error:
        raise InputError(f"{adapter.path} was not loaded: {error}") from error
    if outcome and not outcome.passed:
        raise InputError(
            f"{adapter.path} was not loaded: {outcome.place} gives outputs that differ by {outcome.difference:.1e} of"
            f" the largest number from those that were saved, and {outcome.tolerance:.1e} is allowed. The touched"
            " tensors of the base are right, so a parameter or setting beside them differs, such as a new head that was"
            " not in modules_to_save, an activation, or a layer of another kind."
        )
    return outcome
