"""One side in a process of its own, which takes steps when told to."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from cases import read_batches, read_plan

__all__ = ["Turn", "Worker", "run_apart"]

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
        options: For its `build_step`.
    """

    def __init__(self, side: str, folder: Path, options: dict[str, Any]) -> None:
        self._side = side
        self._connection, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(theirs, side, folder, options), daemon=True)
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
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"its process ended with code {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            self._process.join()
            raise RuntimeError(f"{type(answer).__name__}: {str(answer).strip().splitlines()[0]}") from answer
        return answer


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, since a child's peak of memory starts at what its parent holds."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(function, *arguments).result()


def _serve(connection: Connection, side: str, folder: Path, options: dict[str, Any]) -> None:
    """Build the step, say so, and take as many steps as each message asks for until one asks for none."""
    try:
        _take_turns(connection, importlib.import_module(side), folder, options)
    except Exception as error:  # the parent reports it
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))
        raise


def _take_turns(connection: Connection, side: Any, folder: Path, options: dict[str, Any]) -> None:
    step = side.build_step(folder, read_plan(folder), **options)
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
