"""Loading an adapter, all of it or nothing, and proving that it was applied."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mindspore
from mindspore import Parameter, nn

from mindpet.graph.load import check_network
from mindpet.graph.parameters import canonical_name
from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.compiled import forget_compiled, refuse_captured
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.exchange.adapter import Adapter, check_tensors, list_some
from mindpet.tuning.exchange.probe import Outcome, has_effect, repeat_probes
from mindpet.tuning.exchange.record import BaseTensor
from mindpet.tuning.exchange.sources import read_adapter
from mindpet.tuning.exchange.traceless import keep_random_state
from mindpet.tuning.exchange.values import HostTensor, digest, find_rounding, read, write
from mindpet.tuning.state import PeftState, adapter_parameters, require_state, state_of
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["LoadReport", "UnverifiedAdapterWarning", "load_adapter"]

# What the tensors' names show by themselves, and what matters only in training.
_SHOWN_BY_NAMES = {"target_modules", "modules_to_save", "bias"}
_FOR_TRAINING = ("dropout", "_rate", "_prob", "_init")


class UnverifiedAdapterWarning(UserWarning):
    """An adapter without a probe was loaded: nothing proves that it gives the outputs that it was trained to give."""


@dataclass(frozen=True)
class LoadReport:
    """What loading an adapter has done, and what proves it. As text it is one sentence.

    Attributes:
        path: What was loaded.
        methods: The names of the methods.
        attached: Whether loading attached them, because the network was plain.
        outcome: How the probes came out; None where the file has none.
        rounded_to: Dtypes that tensors of the base have been cast to since the adapter was saved.
        has_effect: Whether the adapter changes anything; one that was never trained may change nothing yet.
    """

    path: str
    methods: tuple[str, ...]
    attached: bool
    outcome: Outcome | None
    rounded_to: tuple[str, ...]
    has_effect: bool

    @property
    def is_verified(self) -> bool:
        """Whether a probe proves that the adapter was applied to its own base."""
        return self.outcome is not None

    def __str__(self) -> str:
        parts = [f"{', '.join(self.methods)} applied from {self.path}"]
        if self.outcome is None:
            parts.append("unverified: the file has no probe")
        else:
            parts.append(
                f"largest difference {self.outcome.difference:.1e} (allowed {self.outcome.tolerance:.1e}) in"
                f" {self.outcome.place}"
            )
            parts.append(f"{self.outcome.cells} cells {'and the whole network ' * self.outcome.ran_network}run")
        if self.rounded_to:
            parts.append(f"the base was cast to {', '.join(self.rounded_to)}")
        if not self.has_effect:
            parts.append("no effect yet: the adapter changes nothing, as before training")
        return "; ".join(parts)


def load_adapter(
    net: nn.Cell, path: str | os.PathLike[str], *, compute_dtype: mindspore.Type | None = None
) -> LoadReport:
    """Load an adapter into a network, all of it or nothing, and check that it gives the outputs that it gave.

    A plain network gets the methods attached that the adapter's configuration names. One to which an equal
    configuration is attached already only gets new values; dropout rates and how parameters start may differ. Whatever
    was compiled is compiled anew at its next call and gives the new results.

    Args:
        net: The network, with the base model's values in it.
        path: A folder that `save_adapter` wrote, or its `adapter_model.safetensors`; a checkpoint `.ckpt` of
            MindPet 1.x, MindFormers or TrainableParamsCheckPoint, for a network that is attached; or a folder of
            MindFormers with `mindformers_adapter_config.json`.
        compute_dtype: As in `get_peft_model`, where loading attaches.

    Returns:
        What was done. Files without a probe also give an `UnverifiedAdapterWarning`.

    Raises:
        TypeError: `net` is no Cell.
        InputError: The file is damaged or incomplete, its configuration is unknown or another than the attached one,
            the base is not the adapter's, or the probe gives other outputs. The network is as before then.
        CompiledNetworkError: As `get_peft_model`.
    """
    check_network(net)
    adapter = read_adapter(Path(path))
    check_tensors(adapter)
    state = state_of(net)
    if state is not None:
        _check_attached(state, adapter)
        refuse_captured()
    elif adapter.configs is None:
        raise InputError(
            f"{adapter.path} does not say which methods it belongs to; attach them with get_peft_model, then load."
        )
    rounded_to = _check_base(net, adapter)
    try:
        if state is None:
            _attach(net, adapter, compute_dtype)
        outcome, changes = _apply(net, adapter, rounded_to)
    except BaseException:
        if state is None and state_of(net) is not None:
            detach(net)
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


def _check_attached(state: PeftState, adapter: Adapter) -> None:
    """Refuse a network to which something else is attached."""
    if state.merged is not None:
        raise InputError("the attached adapter is merged into the base weights; call mindpet.unmerge before loading")
    if adapter.configs is None:
        return
    attached, given = ({one.method: one for one in configs} for configs in (state.configs, adapter.configs))
    if attached.keys() != given.keys():
        raise InputError(
            f"{adapter.path} is for {', '.join(given)}, and attached is {', '.join(attached)}; load it onto a plain"
            " network, or call mindpet.unload first"
        )
    for method, config in given.items():
        if difference := _find_difference(attached[method], config):
            raise InputError(
                f"{adapter.path} has {method} with {difference}; load it onto a plain network, or call mindpet.unload"
                " first"
            )


def _find_difference(attached: PeftConfig, given: PeftConfig) -> str | None:
    """Return the first field in which two configurations of a method compute something else, or None."""
    for field, value in given.model_dump().items():
        other = getattr(attached, field)
        if value != other and field not in _SHOWN_BY_NAMES and not field.endswith(_FOR_TRAINING):
            return f"{field} {value!r}, and attached is {other!r}"
    return None


def _check_base(net: nn.Cell, adapter: Adapter) -> tuple[str, ...]:
    """Check that the network holds the base of the adapter, and return the dtypes that it has been cast to since.

    Raises:
        InputError: A tensor of the base is missing or another one.
    """
    if adapter.record is None:
        return ()
    parameters = _named_parameters(net)
    problems, rounded_to = [], set()
    for name, recorded in adapter.record.base.items():
        dtype = find_rounding(read(parameters[name]), recorded) if name in parameters else None
        if dtype is None:
            problems.append(_describe_base(name, recorded, parameters))
        elif dtype != recorded.dtype:
            rounded_to.add(dtype)
    if problems:
        raise InputError(
            f"{adapter.path} was trained on another base: {list_some(problems)}. Load the base model that its README.md"
            " names into the network first."
        )
    return tuple(sorted(rounded_to))


def _named_parameters(net: nn.Cell) -> dict[str, Parameter]:
    """Return all parameters by canonical name, of an attached network by those that they had after attaching."""
    state = state_of(net)
    named = state.parameters if state else {parameter.name: parameter for parameter in net.get_parameters()}
    return {canonical_name(name): parameter for name, parameter in named.items()}


def _describe_base(name: str, recorded: BaseTensor, parameters: Mapping[str, Parameter]) -> str:
    if name not in parameters:
        nearest = nearest_names(name, parameters, 1)
        return f"the network has no parameter {name}" + (f" (but {nearest[0]})" if nearest else "")
    shape = tuple(parameters[name].shape)
    return f"{name} has the shape {shape} and not {recorded.shape}" if shape != recorded.shape else f"{name} differs"


def _attach(net: nn.Cell, adapter: Adapter, compute_dtype: mindspore.Type | None) -> None:
    assert adapter.configs is not None
    try:
        with keep_random_state():  # new parameters get random values first
            get_peft_model(net, adapter.configs, compute_dtype)
    except InputError as error:
        raise type(error)(f"{adapter.path} cannot be attached: {error}") from error


def _apply(net: nn.Cell, adapter: Adapter, rounded_to: Sequence[str]) -> tuple[Outcome | None, bool]:
    """Write the adapter's values, and check that they are there and what they give; or leave all as it was.

    Returns:
        How the probes came out, None where there is none, and whether the adapter has an effect.
    """
    state = require_state(net)
    parameters = adapter_parameters(net)
    tensors = _fit(net, adapter, parameters, state.marked.keys() if rounded_to else ())
    before = {name: read(parameter) for name, parameter in parameters.items()}
    try:
        _write_all(parameters, tensors)
        return _verify(net, state, adapter, tensors, rounded_to), has_effect(net, state)
    except BaseException:
        _write_all(parameters, before)
        raise


def _write_all(parameters: Mapping[str, Parameter], tensors: Mapping[str, HostTensor]) -> None:
    for name, parameter in parameters.items():
        write(parameter, tensors[name])
    forget_compiled()  # a function under ms.jit may have taken the old values as constants


def _fit(
    net: nn.Cell, adapter: Adapter, parameters: Mapping[str, Parameter], castable: Collection[str]
) -> dict[str, HostTensor]:
    """Return the tensors in the dtypes of the network's parameters.

    Args:
        net: The network.
        adapter: The adapter.
        parameters: What the network expects, by canonical name.
        castable: Names of the network's own parameters, which may have been cast along with its base.

    Raises:
        InputError: A tensor is missing, unexpected, or of another shape or dtype.
    """
    problems = [f"{name} is missing" for name in sorted(parameters.keys() - adapter.tensors.keys())]
    base = _named_parameters(net)
    for name in sorted(adapter.tensors.keys() - parameters.keys()):
        if name not in base:
            nearest = nearest_names(name, parameters, 1)
            problems.append(f"{name} is unknown to the network" + (f" (nearest: {nearest[0]})" if nearest else ""))
        elif digest(adapter.tensors[name]) != digest(read(base[name])):
            problems.append(f"{name} is a part of the base, and the network's has other values")
    fitting = {}
    for name in sorted(parameters.keys() & adapter.tensors.keys()):
        tensor, expected = adapter.tensors[name], parameters[name]
        dtype = str(expected.dtype).lower()
        fitting[name] = HostTensor(tensor.values, dtype if name in castable else tensor.dtype)
        if fitting[name].shape != tuple(expected.shape) or fitting[name].dtype != dtype:
            problems.append(f"{name} is {tensor}, and the network has {dtype} {list(expected.shape)}")
    if problems:
        raise InputError(
            f"{adapter.path} does not fit what is attached: {list_some(problems)}. Attach with the adapter's own rank,"
            " sizes and target_modules."
        )
    return fitting


def _verify(
    net: nn.Cell, state: PeftState, adapter: Adapter, tensors: Mapping[str, HostTensor], rounded_to: Sequence[str]
) -> Outcome | None:
    """Check what the parameters hold now, and the probes; None where there is no probe.

    Raises:
        InputError: A probe gives other outputs.
    """
    for name, parameter in adapter_parameters(net).items():
        if digest(read(parameter)) != digest(tensors[name]):
            raise InputError(f"{name} does not hold what was written into it; check the device")
    if adapter.record is None:
        return None
    try:
        outcome = repeat_probes(net, state, adapter.record, rounded_to)
    except InputError as error:
        raise InputError(f"{adapter.path} was not loaded: {error}") from error
    if outcome and not outcome.passed:
        raise InputError(
            f"{adapter.path} was not loaded: {outcome.place} gives outputs that differ by {outcome.difference:.1e} of"
            f" the largest number from those that were saved, and {outcome.tolerance:.1e} is allowed. The"
            " touched tensors of the base are right, so a parameter or setting beside them differs, such as a new head"
            " that was not in modules_to_save, an activation, or a layer of another kind."
        )
    return outcome
