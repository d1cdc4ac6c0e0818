"""`mindpet demo`: the main jobs on the embedded models and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mindpet.cli import finetune
from mindpet.cli._options import with_options
from mindpet.train.settings import FinetuneSettings, load_settings

__all__ = ["command"]

_EXAMPLES = 3


@with_options(FinetuneSettings, leave_out=("task", "model", "data"), panels=finetune.METHOD_PANELS)
def command(
    what: Annotated[
        Literal["llm"] | None,
        typer.Argument(help="llm: tune SmolLM2-135M-Instruct on BBC News articles, with P-Tuning v2 and with LoRA."),
    ] = None,
    **flags: Any,
) -> None:
    """Fine-tune all-MiniLM-L6-v2 on BBC News headlines, as `make demo` does; or a language model.

    Example: mindpet demo --method adapter --overwrite

    Example: mindpet demo llm --overwrite
    """
    if what == "llm":
        _run_llm(flags)
    else:
        finetune.run(load_settings(None, {"out": Path("runs/demo"), **flags}), _EXAMPLES)


def _run_llm(flags: Mapping[str, Any]) -> None:
    """Tune the language model, show progress on stderr, and print what it was and what it has become on stdout."""
    from rich.console import Console

    from mindpet.train.demo_llm import continuation_table, perplexity_table, run_demo, settings_of_the_demo

    progress = Console(stderr=True)
    demo = run_demo(settings_of_the_demo(flags), progress)
    if demo is None:
        progress.print("ended early; --resume goes on")
        raise typer.Exit(1)
    result = Console()
    result.print(continuation_table(demo))
    result.print(perplexity_table(demo))
    for one in demo.tuned:
        result.print(f"{one.metrics['method']}: {one.folder}", soft_wrap=True)
