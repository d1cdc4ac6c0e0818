"""`mindpet infer`: what a run says of texts."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mindpet.cli._serving import MODEL, RUN, print_json, progress
from mindpet.utils.exceptions import InputError

if TYPE_CHECKING:
    from mindpet.models.generation import Sampling

__all__ = ["command"]

_language = partial(typer.Option, rich_help_panel="Of language models", show_default=True)


def command(
    run: Annotated[Path, RUN],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="The texts; the lines of --file or stdin if not given."),
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File or pipe with one text a line.", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the answers; stdout if not given.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out if it exists.")] = False,
    model: Annotated[Path | None, MODEL] = None,
    raw: Annotated[bool, _language("--raw", help="Continue texts as they are, rather than answer them.")] = False,
    max_new_tokens: Annotated[int, _language(min=1, help="Tokens of an answer, at most.")] = 128,
    temperature: Annotated[float, _language(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, _language(min=1, help="Choose among so many of the likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, _language(help="Choose among those with this probability together, at most 1.")
    ] = None,
    seed: Annotated[int, _language(min=0, help="Seed of the choice.")] = 0,
) -> None:
    """Answer texts, each with one JSON object on a line of its own.

    Example: mindpet infer runs/demo "Dollar gains on Greenspan speech"
    """
    if texts and file:
        raise InputError("--file: texts were given beside it; give either")
    sampling = _sampling(temperature, top_k, top_p, seed)
    from mindpet.train.answering import answer, check_output, write_lines
    from mindpet.train.completing import Writing
    from mindpet.train.serve import open_run

    if out:
        check_output(out, overwrite)
    source = nullcontext() if texts else _open(file)
    notify = progress()
    if not texts and not file and sys.stdin.isatty():
        notify("each line that you type is answered; Ctrl-D ends")
    served = open_run(run, model, notify)
    writing = Writing(raw, max_new_tokens, sampling)
    groups = _groups(texts or (), source, file or "stdin", served.settings.batch_size)
    answers = answer(served, groups, writing, notify)
    if out:
        write_lines(out, answers)
        return
    for one in answers:
        print_json(one)


def _sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> Sampling:
    """Return how tokens are chosen; what the parser has not refused is refused here by the option's name."""
    if not math.isfinite(temperature):
        raise InputError(f"--temperature: {temperature} was given, and it takes a number from 0; try 0.8")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"--top-p: {top_p} was given, and it takes a number above 0 and up to 1; try 0.9")
    for option, value in (("--top-k", top_k), ("--top-p", top_p)):
        if value is not None and not temperature:
            raise InputError(
                f"{option}: {value} was given, and it chooses by chance, for which --temperature must be above 0; add "
                "--temperature 1.0, or leave it out"
            )
    from mindpet.models.generation import Sampling

    try:
        return Sampling(temperature, top_k, top_p, seed)
    except InputError as error:
        raise InputError(f"--{error}") from error


def _open(file: Path | None) -> AbstractContextManager[Any]:
    """Open a file, which may be a pipe that can be read only once; None is stdin."""
    if file is None:
        return nullcontext(sys.stdin.buffer)
    try:
        return file.open("rb")
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(source: Path | str, error: OSError) -> InputError:
    return InputError(f"{source} cannot be read ({error.strerror or error}); name another file")


def _groups(
    texts: Sequence[str], source: AbstractContextManager[Any], name: Path | str, most: int
) -> Iterator[Sequence[bytes]]:
    """Yield the texts, or else the lines of `source`, at most so many at once."""
    from mindpet.train.answering import read_lines

    if texts:
        for begin in range(0, len(texts), most):
            yield [os.fsencode(text) for text in texts[begin : begin + most]]
        return
    try:
        with source as stream:
            yield from read_lines(stream, most)
    except OSError as error:
        raise _unreadable(name, error) from error
