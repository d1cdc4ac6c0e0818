"""Argument checks of the delta layers: one function a rule, each raising the type that the specification documents."""

import math
import numbers
from typing import Any, NoReturn

from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Initializer, initializer

from mindpet.delta._activations import ACTIVATIONS
from mindpet.delta.delta_constants import VALID_TENSOR_DATATYPE
from mindpet.utils.exceptions import NotPositiveError, UnknownNonLinearityError
from mindpet.utils.nearest import nearest_names

__all__ = [
    "check_activation",
    "check_bool",
    "check_dense",
    "check_dtype",
    "check_float_rate",
    "check_initializer",
    "check_multiple",
    "check_non_linearity",
    "check_nonzero_number",
    "check_not_above",
    "check_not_negative_int",
    "check_plain",
    "check_positive_int",
    "check_rate",
    "check_weight_initializer",
]


def _refuse(error: type[Exception], name: str, given: object, accepted: str, advice: str) -> NoReturn:
    """Raise `error` with the three parts that each message has: what was given, what is accepted, what to do."""
    raise error(f"`{name}` is {given!r} ({type(given).__name__}); accepted is {accepted}. {advice}")


def check_positive_int(name: str, value: Any) -> None:
    """Refuse what is no Python int (bool and NumPy integers included: TypeError) or is below one (NotPositiveError)."""
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(TypeError, name, value, "a positive int", "Pass a Python int, for a NumPy integer int(value).")
    if value <= 0:
        _refuse(NotPositiveError, name, value, "a positive int", "Pass 1 or more.")


def check_not_negative_int(name: str, value: Any) -> None:
    """Refuse what is no Python int (bool and NumPy integers included: TypeError) or is below zero (ValueError)."""
    if not isinstance(value, int) or isinstance(value, bool):
        _refuse(TypeError, name, value, "an int from 0", "Pass a Python int, for a NumPy integer int(value).")
    if value < 0:
        _refuse(ValueError, name, value, "an int from 0", "Pass 0 or more.")


def check_bool(name: str, value: Any) -> None:
    """Refuse what is neither True nor False (TypeError)."""
    if not isinstance(value, bool):
        _refuse(TypeError, name, value, "True or False", "Pass one of the two.")


def check_nonzero_number(name: str, value: Any) -> None:
    """Refuse what is no int or float (TypeError), zero, NaN or infinite (ValueError)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _refuse(TypeError, name, value, "an int or float other than 0", "Pass a Python number.")
    if value == 0 or not math.isfinite(value):
        _refuse(ValueError, name, value, "a finite int or float other than 0", "Pass such a number.")


def check_rate(name: str, value: Any) -> None:
    """Refuse a dropout rate that is no int or float (TypeError) or lies outside [0, 1) (ValueError, NaN too)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        _refuse(TypeError, name, value, "a float in [0, 1)", "Pass a Python number such as 0.1.")
    if not 0 <= value < 1:
        _refuse(ValueError, name, value, "a float in [0, 1)", "Pass 0.0 to drop nothing.")


def check_float_rate(name: str, value: Any) -> None:
    """Refuse a dropout rate that is no float, an int included (TypeError), or lies outside [0, 1) (ValueError)."""
    if not isinstance(value, float):
        _refuse(TypeError, name, value, "a float in [0, 1)", "Write 0.0 for no dropout.")
    check_rate(name, value)


def check_dtype(name: str, value: Any) -> None:
    """Refuse what is none of mindspore's float16, float32 and bfloat16 (TypeError)."""
    if not any(isinstance(value, type(dtype)) and value == dtype for dtype in VALID_TENSOR_DATATYPE):
        accepted = "mindspore.dtype.float16, float32 or bfloat16"
        _refuse(TypeError, name, value, accepted, "Pass such a dtype, for example mindspore.dtype.float32.")


def check_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Refuse a `value` that `divisor` does not divide (ValueError)."""
    if value % divisor:
        accepted = f"a multiple of `{divisor_name}`, which is {divisor}"
        _refuse(ValueError, name, value, accepted, f"Pass {divisor * (value // divisor + 1)}, for example.")


def check_not_above(name: str, value: int, limit_name: str, limit: int) -> None:
    """Refuse a `value` greater than `limit` (ValueError)."""
    if value > limit:
        _refuse(ValueError, name, value, f"at most `{limit_name}`, which is {limit}", "Pass a smaller one.")


def check_initializer(name: str, value: Any, shape: tuple[int, ...]) -> None:
    """Refuse what cannot initialise a parameter of `shape`.

    Raises:
        TypeError: `value` is no Tensor, str, Initializer or real number.
        ValueError: a str that `mindspore.common.initializer.initializer` does not know or that does not fit `shape`, a
            Tensor of another shape, or a number that is NaN or infinite.
    """
    if isinstance(value, Tensor):
        if tuple(value.shape) != shape:
            given = f"a Tensor of shape {tuple(value.shape)}"
            raise ValueError(f"`{name}` is {given}; accepted is the shape {shape}. Reshape or transpose it.")
        return
    if isinstance(value, (str, Initializer)):
        check_weight_initializer(name, value)
        return
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        accepted = "a Tensor, str, Initializer or number"
        _refuse(TypeError, name, value, accepted, "Pass one of these, for example 'zeros'.")
    if not math.isfinite(value):
        _refuse(ValueError, name, value, "a finite number", "Pass such a number.")


def check_weight_initializer(name: str, value: Any) -> None:
    """Refuse what is no str or Initializer (TypeError), or a str that names no initializer (ValueError)."""
    if not isinstance(value, (str, Initializer)):
        _refuse(TypeError, name, value, "a str or Initializer", "Pass one of these, for example 'xavier_uniform'.")
    if isinstance(value, str):
        try:
            initializer(value, [1, 1])
        except ValueError:
            accepted = "a name that mindspore.common.initializer.initializer knows"
            _refuse(ValueError, name, value, accepted, "Pass such a name, for example 'normal', 'zeros' or 'ones'.")


def check_activation(name: str, value: Any) -> None:
    """Refuse what is no str, Cell, Primitive or None (TypeError), or a str that names no activation (KeyError)."""
    if value is not None and not isinstance(value, (str, nn.Cell, ops.Primitive)):
        accepted = "a str, Cell, Primitive or None"
        _refuse(TypeError, name, value, accepted, "Pass a name such as 'relu' or an instance such as nn.ReLU().")
    if isinstance(value, str):
        _check_activation_name(KeyError, name, value)


def check_non_linearity(name: str, value: Any) -> None:
    """Refuse what is no str (TypeError), or a str that names no activation (UnknownNonLinearityError)."""
    if not isinstance(value, str):
        _refuse(TypeError, name, value, "the name of an activation, a str", "Pass a name such as 'gelu'.")
    _check_activation_name(UnknownNonLinearityError, name, value)


def _check_activation_name(error: type[Exception], name: str, value: str) -> None:
    if value not in ACTIVATIONS:
        near = nearest_names(value, ACTIVATIONS)
        advice = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Pass one of these."
        _refuse(error, name, value, f"one of {', '.join(ACTIVATIONS)}", advice)


def check_plain(name: str, cell: Any, kind: type[nn.Cell]) -> None:
    """Refuse what is no `kind` or has a construct of its own, so that nothing of it can be lost (TypeError)."""
    if not isinstance(cell, kind) or type(cell).construct is not kind.construct:
        raise TypeError(
            f"`{name}` is a {type(cell).__name__}; accepted is an nn.{kind.__name__} with MindSpore's own construct. "
            "Hand in the plain layer that is to be replaced."
        )


def check_dense(dense: Any) -> None:
    """Refuse what does not compute as nn.Dense does, so that nothing of it can be lost (TypeError).

    A child of nn.Dense with a construct of its own says by `computes_as_dense = True` that it computes the same.
    """
    plain = isinstance(dense, nn.Dense) and (
        type(dense).construct is nn.Dense.construct or getattr(dense, "computes_as_dense", False)
    )
    if not plain:
        raise TypeError(
            f"`dense` is a {type(dense).__name__}; accepted is an nn.Dense with MindSpore's own construct, or a child "
            "of it with `computes_as_dense = True`. Hand in the plain layer that is to be replaced."
        )
