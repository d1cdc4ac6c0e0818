"""Command-line options made from the fields of a settings class, so that both say the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["with_options"]


def with_options(
    settings: type[BaseModel], leave_out: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an option for each field of `settings`, read from the field's type and text.

    The decorated function's `**flags` receive only what was given on the command line.

    Args:
        settings: Its fields become options: `head_learning_rate` becomes `--head-learning-rate`.
        leave_out: Fields that get no option.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        options = [_option(name, field) for name, field in settings.model_fields.items() if name not in leave_out]

        def command(**given: Any) -> None:
            function(**{name: value for name, value in given.items() if value not in (None, [])})

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the keyword parameter that typer turns into the option of `field`."""
    kind: Any = field.annotation
    if kind == tuple[str, ...]:
        kind = list[str]
    option = typer.Option(help=f"{field.description}{_shown_default(field)}", show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind if type(None) in get_args(kind) else kind | None, option],
    )


def _shown_default(field: FieldInfo) -> str:
    """Return a field's default as the help shows it; a text says itself what happens without a value."""
    if field.default is None:
        return ""
    return f" [default: {', '.join(field.default) if isinstance(field.default, tuple) else field.default}]"
