"""The program `mindpet`: its commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from mindpet import __version__
from mindpet.utils.exceptions import DivergedError, InputError, RankError
from mindpet.utils.nearest import nearest_names

__all__ = ["COMMANDS", "app", "main"]

COMMANDS = ("finetune", "demo", "evaluate", "infer", "merge", "export", "inspect", "doctor")

# What the launcher of MindPet 1.0.4 took and no command here takes, and what does the same now.
_OF_1_0_4 = {
    "--boot_file_path": "run the boot file by `python` itself",
    "--data_path": "--data",
    "--output_path": "--out",
    "--model_config_path": "call `mindpet.graph.freeze_from_config` in the boot file",
    "--pretrained_model_path": "--model",
    "--ckpt_path": "name the run folder, which holds what was trained",
    "--timeout": "the shell's `timeout`",
    "--quiet": "2>/dev/null, as progress goes to stderr",
}


class _Commands(TyperGroup):
    """The commands, each imported when it is asked for: a help must not wait for all the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            nearest = nearest_names(cmd_name, COMMANDS)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(COMMANDS)}"
            raise InputError(f"{cmd_name}: no such command; {hint}")
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(cmd_name)(import_module(f"mindpet.cli.{cmd_name}").command)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=_Commands,
    help="Parameter-efficient fine-tuning for MindSpore.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    _quieten_compile_cache()
    try:
        _refuse_options_of_1_0_4(sys.argv[1:])
        app()
    except (InputError, DivergedError, RankError) as error:
        print(f"mindpet: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        print("mindpet: interrupted", file=sys.stderr)
        sys.exit(1)


def _quieten_compile_cache() -> None:
    """Leave out that MindSpore cannot tell whether a graph that it reads is the right one: `kept_graphs` can."""
    if "GLOG_v" not in os.environ:
        os.environ.setdefault("MS_SUBMODULE_LOG_v", "{PIPELINE:3}")


def _refuse_options_of_1_0_4(arguments: list[str]) -> None:
    for argument in arguments:
        option = argument.partition("=")[0]
        if option in _OF_1_0_4:
            raise InputError(
                f"{option}: an option of MindPet 1.0.4's launcher, which is gone; instead: {_OF_1_0_4[option]} (see "
                "docs/migration.md)"
            )
