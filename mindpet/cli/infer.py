"""`mindpet infer`: what a run says of texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mindpet.cli._serving import MODEL, RUN, print_json, progress
from mindpet.storage.text import require_file
from mindpet.utils.exceptions import InputError

__all__ = ["command"]

_language = partial(typer.Option, rich_help_panel="Of language models", show_default=True)


def command(
    run: Annotated[Path, RUN],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="The texts; the lines of --file or stdin if not given."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text a line.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the answers; stdout if not given.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
    model: Annotated[Path | None, MODEL] = None,
    raw: Annotated[bool, _language("--raw", help="Continue texts as they are, rather than answer them.")] = False,
    max_new_tokens: Annotated[int, _language(min=1, help="Tokens of an answer, at most.")] = 128,
    temperature: Annotated[float, _language(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, _language(min=1, help="Choose among so many of the likeliest tokens.")] = None,
    top_p: Annotated[float | None, _language(help="Choose among those with this probability together.")] = None,
    seed: Annotated[int, _language(min=0, help="Seed of the choice.")] = 0,
) -> None:
    """Answer texts, each with one JSON object on a line of its own.

    Example: mindpet infer runs/demo "Dollar gains on Greenspan speech"
    """
    if texts and file:
        raise InputError("--file: texts were given beside it; give either")
    from mindpet.models.generation import Sampling
    from mindpet.train.answering import answer, check_output, write_lines
    from mindpet.train.completing import Writing
    from mindpet.train.serve import open_run

    writing = Writing(raw, max_new_tokens, Sampling(temperature, top_k, top_p, seed))
    if out:
        check_output(out, overwrite)
    if file:
        require_file(file)
    notify = progress()
    if not texts and not file and sys.stdin.isatty():
        notify("each line that you type is answered; Ctrl-D ends")
    served = open_run(run, model, notify)
    answers = answer(served, _groups(texts or (), file, served.settings.batch_size), writing, notify)
    if out:
        write_lines(out, answers)
        return
    for one in answers:
        print_json(one)


def _groups(texts: Sequence[str], file: Path | None, most: int) -> Iterator[Sequence[bytes]]:
    """Yield the texts, or the lines of the file or of stdin, at most so many at once."""
    from mindpet.train.answering import read_lines

    if texts:
        for begin in range(0, len(texts), most):
            yield [os.fsencode(text) for text in texts[begin : begin + most]]
        return
    try:
        source: Any = file.open("rb") if file else nullcontext(sys.stdin.buffer)
        with source as stream:
            yield from read_lines(stream, most)
    except OSError as error:
        raise InputError(f"{file or 'stdin'} cannot be read ({error.strerror or error}); name another file") from error
