"""`mindpet merge`: from a run to a model of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mindpet.cli._serving import MODEL, OUT, OVERWRITE, RUN, progress

__all__ = ["command"]


def command(
    run: Annotated[Path, RUN],
    out: Annotated[Path, OUT],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the written folder again, and compare its logits.")
    ] = False,
    overwrite: Annotated[bool, OVERWRITE] = False,
    model: Annotated[Path | None, MODEL] = None,
) -> None:
    """Write a run's model with what was trained folded into its weights, as a Hugging Face folder.

    Example: mindpet merge runs/demo --out models/news --verify
    """
    from mindpet.train.exporting import check_model_folder, write_model
    from mindpet.train.serve import open_run

    check_model_folder(out, overwrite)
    notify = progress()
    served = open_run(run, model, notify)
    report, verification = write_model(served, out, verify=verify, overwrite=overwrite, notify=notify)
    print(f"{len(report.cells)} layers merged; changes lost to rounding: {report.swallowed:.2%}.")
    if verification:
        print(f"Largest difference of a logit: {verification.difference:.1e} (allowed {verification.tolerance:.1e}).")
        if not verification.passed:
            print(f"mindpet: {out} was not written, as its logits would differ too much", file=sys.stderr)
            raise typer.Exit(1)
    print(f"model: {out}")
