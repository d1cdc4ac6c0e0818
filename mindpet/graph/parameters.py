"""The parameters of a network: where they hang, what they are called, and which of them are the network's own."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from mindspore import Parameter, nn
from mindspore.experimental import optim

from mindpet.utils.exceptions import InputError
from mindpet.utils.names import STATE_MARK

__all__ = ["LabelledParameter", "canonical_name", "labelled_parameters", "own_parameters", "trainable_parameters"]

_OPTIMIZERS = (nn.Optimizer, optim.Optimizer)
_STEP_STATE = (*_OPTIMIZERS, nn.DynamicLossScaleUpdateCell, nn.FixedLossScaleUpdateCell)


@dataclass(frozen=True)
class LabelledParameter:
    """A parameter with everything that a pattern may match.

    Attributes:
        parameter: The parameter.
        labels: Its paths through the cells (several when cells share it) and its name, each once.
    """

    parameter: Parameter
    labels: tuple[str, ...]


def labelled_parameters(net: nn.Cell) -> list[LabelledParameter]:
    """Return each parameter of the network once, in the order of `net.parameters_and_names()`, without state."""
    parameters: dict[int, Parameter] = {}
    labels: dict[int, dict[str, None]] = {}
    for cell_path, cell in net.cells_and_names():
        for path, parameter in cell.parameters_and_names(cell_path, expand=False):
            if STATE_MARK in parameter.name:
                continue
            parameters[id(parameter)] = parameter
            labels.setdefault(id(parameter), {})[path] = None
    return [
        LabelledParameter(parameter, tuple(labels[key] | {parameter.name: None}))
        for key, parameter in parameters.items()
    ]


def trainable_parameters(net: nn.Cell) -> dict[str, Parameter]:
    """Return the trainable parameters of a network by name, without what a training step around it adds.

    A cell that holds an optimizer is a training step: the optimizer's state, the loss scale and the like are not the
    network's, although MindSpore marks them as trainable too.

    Raises:
        InputError: Nothing is trainable, or a trainable parameter shares its name with another parameter, so that a
            file could hold only one of the two.
    """
    trainable = {parameter.name: parameter for parameter in own_parameters(net) if parameter.requires_grad}
    if not trainable:
        raise InputError(
            "The network has no trainable parameter; attach a method first, then freeze the rest with freeze_delta."
        )
    counts = Counter(parameter.name for parameter in net.get_parameters())
    repeated = sorted(name for name in trainable if counts[name] > 1)
    if repeated:
        raise InputError(
            f"Several parameters of the network have the name {', '.join(map(repr, repeated))}, and a file can hold"
            " only one of each; give every parameter a name of its own, for example with update_parameters_name."
        )
    return trainable


def canonical_name(name: str) -> str:
    """Return the name of a parameter as version 2 writes it: 1.x also wrote `tk_delta` and `lora_A`, `lora_B`."""
    name = name.replace("tk_delta_", "mindpet_delta_")
    return re.sub(r"mindpet_delta_lora_([AB])\b", lambda match: match[0].lower(), name)


def own_parameters(net: nn.Cell) -> Iterator[Parameter]:
    """Yield the parameters of a network, without what a training step around it adds; see `trainable_parameters`."""
    cells = list(net.cells_and_names())
    optimized = {id(parameter) for _, cell in cells if isinstance(cell, _OPTIMIZERS) for parameter in cell.parameters}
    state = {id(part) for _, cell in cells if isinstance(cell, _STEP_STATE) for _, part in cell.cells_and_names()}
    for _, cell in cells:
        if id(cell) in state:
            continue
        is_step = any(isinstance(child, _OPTIMIZERS) for child in cell.cells())
        for parameter in cell.get_parameters(expand=False):
            if not is_step or id(parameter) in optimized:
                yield parameter
