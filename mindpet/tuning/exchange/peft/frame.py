"""What all of PEFT's folders share: names, configuration keys, and how a folder is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from mindspore import Parameter, nn
from pydantic import ValidationError

from mindpet.tuning.config import PeftConfig
from mindpet.tuning.exchange.adapter import list_some
from mindpet.tuning.exchange.record import explain
from mindpet.tuning.exchange.values import FLOATS, HostTensor, read
from mindpet.tuning.layers import Network
from mindpet.utils.exceptions import InputError

__all__ = ["PREFIX", "Family", "Leaf", "OwnParameter", "Source", "widen"]

PREFIX = "base_model.model."  # before a layer's path in the name of each of its tensors

# Keys that say nothing of the numbers. The way a layer stores its weight is the layer's own business.
_COMMON = {
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "peft_type", "peft_version"),
    *("revision", "task_type", "modules_to_save"),
}


@dataclass(frozen=True)
class Leaf:
    """A tensor that a method has for one layer.

    Attributes:
        theirs: What follows the layer's path in PEFT's name.
        ours: The parameter's name in the cell.
        shape: Its shape in PEFT's file.
        own_shape: Its shape here, with the numbers in the same order.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]
    own_shape: tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """What a method of PEFT's has for each layer that it adapts, for both directions.

    Attributes:
        peft_type: Its name in `adapter_config.json`.
        config: The configuration's class here.
        fields: Keys that have the same name, values and meaning in both configurations.
        idle: Further keys that say nothing of the numbers, or nothing that the tensors do not say too.
        endings: What may follow a layer's path in the names of its tensors.
        candidates: The paths of the layers that PEFT's method can adapt.
        leaves: The tensors of one layer, for the configuration here, the layer's path, and the layer.
        always: Further keys that are always written, with their values.
        fixed: Keys with the values that compute what is computed here.
        fields_of: Fields of the configuration here that have no equal in PEFT's, for a source and its adapted layers.
    """

    peft_type: str
    config: type[PeftConfig]
    fields: tuple[str, ...]
    idle: frozenset[str]
    endings: tuple[str, ...]
    candidates: Callable[[Network], list[str]]
    leaves: Callable[[Any, str, nn.Cell], tuple[Leaf, ...]]
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    fields_of: Callable[[Source, list[str]], dict[str, Any]] = lambda source, paths: {}
    always: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnParameter:
    """A parameter of the network itself.

    Attributes:
        name: Its name.
        parameter: The parameter.
        before: Its values before training, where they are kept.
    """

    name: str
    parameter: Parameter
    before: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.parameter.shape)

    @property
    def dtype(self) -> str:
        """Its dtype, by name."""
        return str(self.parameter.dtype).lower()

    @property
    def base(self) -> HostTensor:
        """Its values before training."""
        return read(self.parameter) if self.before is None else HostTensor(self.before, self.dtype)


@dataclass(frozen=True)
class Source:
    """A folder of PEFT's that is read for a network.

    Attributes:
        path: Its `adapter_config.json`.
        config: What that holds.
        file: Its file of tensors.
        tensors: Those, by their names there.
        network: The network's cells as they were before attaching.
        own: The network's own parameters, by their names in Hugging Face files.
    """

    path: Path
    config: Mapping[str, Any]
    file: Path
    tensors: Mapping[str, HostTensor]
    network: Network
    own: Mapping[str, OwnParameter]

    def refuse(self, cause: str, advice: str) -> NoReturn:
        """Refuse what the configuration says."""
        raise InputError(f"{self.path}: {cause}; {advice}.")

    def refuse_tensors(self, problems: Iterable[str]) -> None:
        """Refuse the tensors if there is any problem with them."""
        if problems := list(problems):
            raise InputError(f"{self.file}: {list_some(problems)}: save or fetch the adapter again.")

    def names(self, key: str) -> tuple[str, ...]:
        """Return a key that holds a list of names, or nothing; each name once."""
        value = self.config.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            self.refuse(f"{key} is {value!r}, and a list of names is accepted", "correct it")
        return tuple(dict.fromkeys(value))

    def names_or_pattern(self, key: str) -> str | tuple[str, ...]:
        """Return a key that holds names, or a regular expression."""
        value = self.config.get(key)
        if not isinstance(value, str):
            return self.names(key)
        try:
            re.compile(value)
        except re.error as error:
            self.refuse(f"{key} is {value!r}, which is no regular expression ({error})", "correct it")
        return value

    def check_keys(self, family_keys: Iterable[str], fixed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse a key that is set and would change the numbers.

        Args:
            family_keys: Those that the method reads, or that say nothing of the numbers.
            fixed: Keys with the values that compute what is computed here.
        """
        known = _COMMON | set(family_keys)
        for key, value in self.config.items():
            if key in fixed and not any(value is accepted or value == accepted for accepted in fixed[key]):
                accepted = ", ".join(map(repr, fixed[key]))
                self.refuse(
                    f"{key} is {value!r}, and {accepted} can be read",
                    "merge the adapter into its base with PEFT, or train it without",
                )
            if value and key not in known and key not in fixed:
                self.refuse(
                    f"{key} is {value!r}, which is not known to leave the numbers as they are",
                    "merge the adapter into its base with PEFT, or train it without",
                )

    def make_config(self, family: type[PeftConfig], **fields: Any) -> PeftConfig:
        """Return a configuration of ours.

        Raises:
            InputError: A value cannot be used.
        """
        try:
            return family(**fields)
        except ValidationError as error:
            raise InputError(f"{self.path}: a value cannot be used ({explain(error)}); correct the field.") from error


def widen(tensor: HostTensor, dtype: str = FLOATS[0]) -> HostTensor:
    """Return a tensor in a dtype that holds each of its values exactly, as PEFT does on loading; else as it is."""
    if tensor.dtype not in FLOATS or dtype not in FLOATS or FLOATS.index(dtype) >= FLOATS.index(tensor.dtype):
        return tensor
    if dtype != FLOATS[0]:  # neither of the two halves holds the other
        return tensor
    return HostTensor(tensor.values.astype(np.float32), dtype)
