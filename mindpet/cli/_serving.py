"""What the commands share that open a finished run: its argument, its base model, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import typer
from rich.console import Console

__all__ = ["MODEL", "OUT", "OVERWRITE", "RUN", "print_json", "progress"]

RUN: Any = typer.Argument(
    metavar="RUN", help="Run folder that `mindpet finetune` or `mindpet demo` wrote.", show_default=False
)
MODEL: Any = typer.Option(help="Base model's folder; where it was in training if not given.", show_default=False)
OUT: Any = typer.Option(help="Folder that is written.", show_default=False)
OVERWRITE: Any = typer.Option("--overwrite", help="Replace what an earlier call wrote there.")


def progress() -> Callable[[str], None]:
    """Return what shows a sentence on stderr."""
    return partial(Console(stderr=True).print, soft_wrap=True, markup=False, highlight=False)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON on stdout, at once; in ASCII where stdout takes no UTF-8."""
    takes_all = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    print(json.dumps(value, ensure_ascii=not takes_all), flush=True)
