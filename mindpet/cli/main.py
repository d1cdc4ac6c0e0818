"""The program `mindpet`: its commands, and what becomes of errors."""

from __future__ import annotations

import sys

import typer

from mindpet import __version__
from mindpet.cli import demo, doctor, finetune
from mindpet.utils.exceptions import DivergedError, InputError, RankError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Parameter-efficient fine-tuning for MindSpore.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("finetune")(finetune.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the program: exit code 0 when all went well, 1 when a run failed or was ended, 2 for bad input."""
    try:
        app()
    except (InputError, DivergedError, RankError) as error:
        print(f"mindpet: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("mindpet: interrupted", file=sys.stderr)
        sys.exit(1)
