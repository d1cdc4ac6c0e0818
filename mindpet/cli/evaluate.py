"""`mindpet evaluate`: how well a run, or an adapter on its base, does on data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mindpet.cli._serving import MODEL, RUN, print_json, progress
from mindpet.utils.exceptions import InputError

__all__ = ["command"]


def command(
    run: Annotated[Path | None, RUN] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Adapter in place of a run; with --model and --data.", show_default=False),
    ] = None,
    model: Annotated[Path | None, MODEL] = None,
    data: Annotated[
        Path | None, typer.Option(help="File or folder, as for finetune; the run's own if not given.")
    ] = None,
    split: Annotated[
        Literal["train", "valid", "test", "all"],
        typer.Option(help="Part of the data; all of it for data that the run has never seen."),
    ] = "test",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a language model's answer, at most; 128 if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Measure a run on its test texts, or on other data.

    Example: mindpet evaluate runs/demo --json
    """
    if (run is None) == (adapter is None):
        raise InputError("name either a run folder or an adapter, as in `mindpet evaluate runs/demo`")
    if adapter and not (model and data):
        raise InputError("--adapter: an adapter does not say what it was trained with; add --model and --data")
    from mindpet.train.scoring import evaluate
    from mindpet.train.serve import open_adapter, open_run

    notify = progress()
    if adapter and model:
        served = open_adapter(adapter, model, notify)
    elif run:
        served = open_run(run, model, notify)
    figures = evaluate(served, data, split, notify, max_new_tokens)
    if as_json:
        print_json(figures)
    else:
        print(f"{figures['data']}, split {figures['split']}: {figures['texts']} texts")
        Console().print(_table(figures))


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4g}")
    return table
