"""What the process of a side runs: `python turns.py MODULE FOLDER OPTIONS` builds the step and takes turns.

It answers every line that it reads with one, both JSON. The first answer comes by itself, when the step is built: the
versions of the side's packages. Then it takes as many steps as each line asks for, until one asks for none, which it
answers with its peak of memory.

This imports nothing of `mindpet`, since the interpreter may be one that has another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from plan import read_batches, read_plan

__all__ = ["Turn"]


class Turn(NamedTuple):
    """What a side did when it was told to take steps.

    Attributes:
        losses: The loss of each step.
        seconds: How long each step took, from the batch's arrays to the loss as a Python number.
        busy: Processor seconds of all threads during the turn.
        idle_busy: Processor seconds of all threads since the turn before, while the side was waiting.
    """

    losses: list[float]
    seconds: list[float]
    busy: float
    idle_busy: float


def main(module: str, folder: str, options: str) -> None:
    """Take the turns that stdin asks for, and tell stdout of them; arguments as of the command."""
    answers = _claim_stdout()
    try:
        for answer in _take_turns(module, Path(folder), json.loads(options)):
            print(json.dumps({"answer": answer}), file=answers, flush=True)
    except Exception as error:  # the parent reports it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        raise


def _claim_stdout() -> TextIO:
    """Return stdout as a file of our own; what libraries print from now on goes to stderr."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _take_turns(module: str, folder: Path, options: dict[str, Any]) -> Iterator[Any]:
    side = importlib.import_module(module)
    step = side.build_step(folder, read_plan(folder), **options)
    batches = read_batches(folder)
    yield _versions(side.PACKAGES)
    taken, rested = 0, time.process_time()
    while count := json.loads(sys.stdin.readline() or "0"):
        woken = time.process_time()
        losses, seconds = [], []
        for number in range(taken, taken + count):
            start = time.perf_counter()
            losses.append(step(batches[number % len(batches)]))
            seconds.append(time.perf_counter() - start)
        taken += count
        slept, rested = woken - rested, time.process_time()
        yield Turn(losses, seconds, rested - woken, slept)
    yield _peak_megabytes()


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _peak_megabytes() -> float:
    """Return the largest resident size of this process; mindpet's own function would import MindSpore."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])
