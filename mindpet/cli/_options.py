"""Command-line options made from the fields of a settings class, so that both say the same."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["with_options"]


def with_options(
    settings: type[BaseModel], leave_out: Sequence[str] = (), panels: Mapping[str, str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an option for each field of `settings`, read from the field's type and text.

    The decorated function's `**flags` receive only what was given on the command line. An option that may be repeated
    gives a list, or its one value where it was given once and the field takes a text too. A field that takes mappings
    gets no option.

    Args:
        settings: Its fields become options: `head_learning_rate` becomes `--head-learning-rate`.
        leave_out: Fields that get no option.
        panels: The heading in the help under which a field's option stands, where it is not among the others.
    """
    headings = panels or {}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        fields = {
            name: field
            for name, field in settings.model_fields.items()
            if name not in leave_out and dict not in _kinds(field.annotation)
        }
        options = [_option(name, field, headings.get(name)) for name, field in fields.items()]

        def command(**given: Any) -> None:
            flags = {name: value for name, value in given.items() if value not in (None, [])}
            for name, value in flags.items():
                if isinstance(value, list) and len(value) == 1 and str in _kinds(fields[name].annotation):
                    flags[name] = value[0]
            function(**flags)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def _option(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """Return the keyword parameter that typer turns into the option of `field`."""
    kinds = _kinds(field.annotation)
    kind = next((kind for kind in kinds if get_origin(kind) is list), kinds[0])
    option = typer.Option(help=f"{field.description}{_shown_default(field)}", show_default=False, rich_help_panel=panel)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _kinds(annotation: Any) -> list[Any]:
    """Return the types that a field takes besides None, as typer knows them: list[str] for a tuple of texts."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (Union, types.UnionType):
        return [kind for argument in arguments if argument is not type(None) for kind in _kinds(argument)]
    if origin is tuple:
        inner = _kinds(arguments[0])
        return [types.GenericAlias(list, tuple(inner))]
    return [dict if origin is dict else annotation]


def _shown_default(field: FieldInfo) -> str:
    """Return a field's default as the help shows it; a text says itself what happens without a value."""
    return "" if field.default is None else f" (default: {field.default})"
