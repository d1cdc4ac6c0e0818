"""`mindpet finetune`: fine-tune a text classifier or a language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindpet.cli._options import with_options
from mindpet.train.cluster import devices_to_launch
from mindpet.train.methods import OPTIONS
from mindpet.train.settings import FinetuneSettings, load_settings

if TYPE_CHECKING:
    from mindpet.train.finetune import Outcome

__all__ = ["METHOD_PANELS", "command", "run"]

METHOD_PANELS = dict.fromkeys(OPTIONS, "Options of the methods")


@with_options(FinetuneSettings, panels=METHOD_PANELS)
def command(
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")] = None,
    mindformers_yaml: Annotated[
        Path | None,
        typer.Option(help="YAML file of MindFormers; its pet_config gives the method and its options."),
    ] = None,
    **flags: Any,
) -> None:
    """Fine-tune a text classifier or a language model and write a run folder.

    Example: mindpet finetune --data news.jsonl --out runs/news --epochs 3
    """
    run(load_settings(config, flags, mindformers_yaml), examples=0)


def run(settings: FinetuneSettings, examples: int) -> None:
    """Fine-tune, show progress on stderr, and print the closing tables and `examples` test texts on stdout.

    With several devices the same command is run in a process for each, and the first of them prints.
    """
    from mindpet.train.launch import follow_the_launcher, launch

    follow_the_launcher()
    if (devices := devices_to_launch(settings)) > 1:
        raise typer.Exit(launch([sys.executable, "-m", "mindpet.cli", *sys.argv[1:]], devices))
    from rich.console import Console

    from mindpet.train.finetune import finetune

    progress = Console(stderr=True)
    outcome = finetune(settings, progress)
    if not outcome.finished:
        if outcome.ranks.is_first:
            progress.print(f"ended early; last checkpoint: {outcome.checkpoint}; --resume goes on", soft_wrap=True)
        raise typer.Exit(1)
    if outcome.ranks.is_first:
        _print_result(outcome, examples)


def _print_result(outcome: Outcome, examples: int) -> None:
    """Print the closing tables, `examples` test texts, and where everything lies."""
    from rich.console import Console

    from mindpet.train.classification import ClassificationTask
    from mindpet.train.report import closing_tables, example_table

    result = Console()
    for table in closing_tables(outcome):
        result.print(table)
    if examples and isinstance(outcome.task, ClassificationTask):
        result.print(example_table(outcome.task, outcome.predicted, examples))
    for what, path in (
        ("plot", outcome.folder.plot),
        ("checkpoint", outcome.checkpoint),
        ("adapter", outcome.adapter),
    ):
        if path is not None:
            result.print(f"{what}: {path}", soft_wrap=True)
