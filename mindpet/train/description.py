"""What a graph of a cell is made from, as a digest: two cells of one digest have the same graph.

A graph takes a cell's attributes as constants, so what is told wrongly is computed wrongly. Equal are class,
attributes, primitives, constants and children, and of the Parameters shape, dtype, whether they train, and which of
them are the same one. What is not known to be compared by value is equal to itself only.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any

import mindspore
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.ops import Primitive

from mindpet.tuning.state import PeftState
from mindpet.utils.dropout import Dropout

__all__ = ["describe", "describe_for_good"]

_SMALL = (bool, int, float, complex, str, bytes, type(None), mindspore.Type, inspect.Signature, np.generic)
_LEFT_BY_COMPILING = {
    *("__compile_cell_hook__", "__parse_method__", "_cell_init_args", "_compiled", "_has_mutable_args_list"),
    *("_is_check_and_refresh", "_phase_cache", "arguments_key", "compile_phase", "current_phase", "sequence_modified"),
}
_OURS = ("mindpet", "mindspore")  # packages whose code is known by their version
_BENEATH = ("builtins", "abc", "enum", "typing", "pybind11_builtins", "pydantic")  # and of what that is derived


def describe(cell: nn.Cell) -> str:
    """Return a digest that is the same for two cells of this process only if graphs of them differ in Parameters alone.

    Names and values of the Parameters may differ.
    """
    return _digest(_Description().of(cell))


def describe_for_good(cell: nn.Cell) -> str | None:
    """Return a digest that is the same for a cell of another process only if it has the same graph of the same names.

    None where something in the cell, a class of the user's for example, cannot be compared between processes, or where
    a Parameter cannot be found by its name among those of the cell, as that of a loss scale. Classes and functions of
    mindpet and MindSpore are taken to be the same if their names are: whoever compares digests of different versions,
    or of code that was changed at run time, has to see to that.
    """
    try:
        return _digest(_LastingDescription(cell).of(cell))
    except _IncomparableError:
        return None


def _digest(description: Any) -> str:
    return hashlib.sha256(repr(description).encode()).hexdigest()


class _Description:
    """The description of one cell; Parameters and cells within are numbered as they are met."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """Return what is the same for values that are the same constant of a graph."""
        if isinstance(value, _SMALL):
            return type(value).__name__, repr(value)
        if isinstance(value, Parameter):
            return self._number(value), self._name(value), tuple(value.shape), str(value.dtype), value.requires_grad
        if isinstance(value, Tensor):
            wide = value.astype(mindspore.float32) if value.dtype == mindspore.bfloat16 else value
            return str(value.dtype), self.of(wide.asnumpy())
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        if isinstance(value, (list, tuple)):
            return type(value).__name__, [self.of(item) for item in value]
        if isinstance(value, Mapping):
            return type(value).__name__, [(self.of(key), self.of(item)) for key, item in value.items()]
        if isinstance(value, (nn.Cell, Primitive)):
            return self._of_object(value)
        return self._of_other(value)

    def _name(self, parameter: Parameter) -> str:
        return ""

    def _class(self, value: Any) -> Any:
        return type(value).__name__, id(type(value))

    def _of_other(self, value: Any) -> Any:
        return type(value).__name__, id(value)

    def _of_object(self, value: Any) -> Any:
        known = id(value) in self._numbers
        number = self._number(value)
        if known:
            return number
        kind = self._class(value)
        if type(value) in (Dropout, nn.Dropout) and value.p == 0:
            return number, kind  # it computes nothing, so its seed does not matter
        if isinstance(value, nn.Cell):
            return number, kind, self._of_attributes(value)
        return number, kind, self.of(value.attrs), self.of(vars(value))

    def _of_attributes(self, cell: nn.Cell) -> list[tuple[str, Any]]:
        attributes = [
            (name, self.of(value))
            for name, value in vars(cell).items()
            if not _tells_instances(name, value) and not (isinstance(cell, nn.Embedding) and name == "init_tensor")
        ]  # an embedding keeps the first values of its table, and reads them no more
        return sorted(attributes, key=lambda attribute: attribute[0])

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(id(value), len(self._numbers))


class _IncomparableError(Exception):
    """Something cannot be compared between processes; the message names it."""


class _LastingDescription(_Description):
    """A description that holds in other processes too, with the names of Parameters."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self._named = cell.parameters_dict()

    def _name(self, parameter: Parameter) -> str:
        if self._named.get(parameter.name) is not parameter:
            raise _IncomparableError(f"{parameter.name} is not the Parameter of that name in the cell")
        return str(parameter.name)

    def _class(self, value: Any) -> Any:
        """Return the names of the class and its parents: a native twin is made at run time, of parents that are not."""
        return [self._home(kind) for kind in type(value).__mro__]

    def _of_other(self, value: Any) -> Any:
        if isinstance(value, functools.partial):
            return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
        if isinstance(value, Enum):
            return self._home(type(value)), value.name
        if inspect.isroutine(value) or inspect.isclass(value):
            return self._of_named(value)
        return self._of_members(value)

    def _of_named(self, value: Any) -> Any:
        """Describe a function or class by its name, under which it must be found."""
        found: Any = sys.modules.get(value.__module__)
        for name in value.__qualname__.split("."):
            found = getattr(found, name, None)
        if found is not value:
            raise _IncomparableError(f"{value} is not what its module has under its name")
        return self._home(value)

    def _of_members(self, value: Any) -> Any:
        """Describe an instance of MindSpore's or our classes by what it holds."""
        if isinstance(value, PeftState):
            return "PeftState"  # for attaching and saving; no graph looks into it
        if type(value).__module__.split(".")[0] not in _OURS or type(value).__module__ == "mindspore._c_expression":
            raise _IncomparableError(f"{value!r} may hold what its members do not show")
        known = id(value) in self._numbers
        number = self._number(value)
        if known:
            return number
        return number, self._class(value), self.of(getattr(value, "__dict__", {}))

    @staticmethod
    def _home(named: Any) -> tuple[str, str]:
        module = str(named.__module__)
        if module.split(".")[0] not in (*_OURS, *_BENEATH):
            raise _IncomparableError(f"{module}.{named.__qualname__} is neither MindPet's nor MindSpore's")
        return module, named.__qualname__


def _tells_instances(name: str, value: Any) -> bool:
    """Tell whether an attribute says nothing of what a cell computes.

    That is what every nn.Cell has: numbers, times, prefixes, scopes and phases of the instance, and empty places; and
    what compiling leaves in it.
    """
    if name in _LEFT_BY_COMPILING:
        return True
    return name in _names_of_cells() and (type(value) in (int, str, set) or value is None or value == {})


@lru_cache(maxsize=1)
def _names_of_cells() -> set[str]:
    return set(vars(nn.Cell()))
