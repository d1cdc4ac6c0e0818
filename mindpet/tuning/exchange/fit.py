"""Whether an adapter fits a network: what is attached, the base, and each tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mindspore import Parameter, nn

from mindpet.graph.parameters import canonical_name
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.exchange.adapter import Adapter, list_some
from mindpet.tuning.exchange.record import BaseTensor
from mindpet.tuning.exchange.values import HostTensor, digest, find_rounding, read
from mindpet.tuning.state import PeftState, state_of
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["check_attached", "check_base", "fit"]

# What the tensors' names show by themselves, and what matters only in training.
_SHOWN_BY_NAMES = {"target_modules", "modules_to_save", "bias"}
_FOR_TRAINING = ("dropout", "_rate", "_prob", "_init")


def check_attached(state: PeftState, adapter: Adapter) -> None:
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


def check_base(net: nn.Cell, adapter: Adapter) -> tuple[str, ...]:
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


def fit(
    net: nn.Cell, adapter: Adapter, parameters: Mapping[str, HostTensor], castable: Collection[str]
) -> dict[str, HostTensor]:
    """Return the tensors in the dtypes of the network's parameters.

    Args:
        net: The network.
        adapter: The adapter.
        parameters: What the network's own adapter holds, by canonical name.
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
        dtype = expected.dtype
        fitting[name] = HostTensor(tensor.values, dtype if name in castable else tensor.dtype)
        if fitting[name].shape != expected.shape or fitting[name].dtype != dtype:
            problems.append(f"{name} is {tensor}, and the network has {dtype} {list(expected.shape)}")
    if problems:
        raise InputError(
            f"{adapter.path} does not fit what is attached: {list_some(problems)}. Attach with the adapter's own rank,"
            " sizes and target_modules."
        )
    return fitting
