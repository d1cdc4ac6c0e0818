"""One side in a process of its own, which takes steps when told to."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case, prepare, read_batches, read_plan

__all__ = ["Turn", "Worker", "prepare_apart"]

# A fork would share what the parent has imported, and count it in the memory of both sides.
_PROCESSES = multiprocessing.get_context("spawn")


class Turn(NamedTuple):
    """What a worker did when it was told to take steps.

    Attributes:
        losses: The loss of each step.
        seconds: How long each step took, from the batch's arrays to the loss as a Python number.
        busy: Processor seconds of all threads during the turn.
        idle_busy: Processor seconds of all threads since the turn before, while the worker was waiting.
    """

    losses: list[float]
    seconds: list[float]
    busy: float
    idle_busy: float


class Worker:
    """The process of one side, with its network loaded.

    Args:
        side: The module that builds the step.
        folder: What `prepare` wrote.
    """

    def __init__(self, side: str, folder: Path) -> None:
        self._side = side
        self._connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, side, folder), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def take_steps(self, count: int) -> Turn:
        """Take `count` steps."""
        self._connection.send(count)
        return self._receive()

    def close(self) -> float:
        """End the process; return its peak of resident memory in MB (1,000,000 bytes)."""
        self._connection.send(0)
        peak = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"{self._side} ended with code {self._process.exitcode}; its error is above") from None


def prepare_apart(case: Case, steps: int, folder: Path) -> None:
    """Run `prepare` in a process of its own: a child's peak of memory starts at what its parent holds."""
    process = _PROCESSES.Process(target=prepare, args=(case, steps, folder), daemon=True)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the case could not be prepared; the error is above")


def _serve(connection: Connection, side: str, folder: Path) -> None:
    """Build the step, say so, and take as many steps as each message asks for until one asks for none."""
    step = importlib.import_module(side).build_step(folder, read_plan(folder))
    batches = read_batches(folder)
    connection.send("ready")
    taken, rested = 0, time.process_time()
    while count := connection.recv():
        woken = time.process_time()
        losses, seconds = [], []
        for number in range(taken, taken + count):
            start = time.perf_counter()
            losses.append(step(batches[number % len(batches)]))
            seconds.append(time.perf_counter() - start)
        taken += count
        slept, rested = woken - rested, time.process_time()
        connection.send(Turn(losses, seconds, rested - woken, slept))
    connection.send(_peak_megabytes())


def _peak_megabytes() -> float:
    """Return the largest resident size of this process; mindpet's own function would import MindSpore."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
