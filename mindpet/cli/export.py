"""`mindpet export`: a run for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mindpet.cli._serving import MODEL, OUT, OVERWRITE, RUN, progress

__all__ = ["command"]


def command(
    run: Annotated[Path, RUN],
    out: Annotated[Path, OUT],
    form: Annotated[
        Literal["peft", "vllm", "hf", "adapters"],
        typer.Option(
            "--format",
            help="peft: adapter for Hugging Face PEFT; vllm: one that vLLM serves; hf: whole model for transformers; "
            "adapters: bottleneck adapters for the library of this name.",
        ),
    ],
    max_lora_rank: Annotated[
        int | None, typer.Option(help="With vllm, the largest rank that the server takes; 16 if not given.")
    ] = None,
    overwrite: Annotated[bool, OVERWRITE] = False,
    model: Annotated[Path | None, MODEL] = None,
) -> None:
    """Write a run in the form of another library.

    Example: mindpet export runs/demo --format peft --out adapters/news
    """
    from mindpet.train.exporting import export
    from mindpet.train.serve import open_run

    notify = progress()
    served = open_run(run, model, notify)
    export(served, out, form, overwrite=overwrite, notify=notify, max_lora_rank=max_lora_rank)
    print(f"{form}: {out}")
