"""One side in a process of its own, which takes steps when told to."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from turns import Turn

__all__ = ["Turn", "Worker", "run_apart"]

# A fork would share what the parent has imported, and count it in the memory of both sides.
_PROCESSES = multiprocessing.get_context("spawn")
_TURNS = Path(__file__).with_name("turns.py")


class Worker:
    """The process of one side, with its network loaded.

    Args:
        side: The module that builds the step.
        folder: What `prepare` wrote.
        options: For its `build_step`.
        python: The interpreter of another environment, which sees neither the packages of this one nor its files.

    Attributes:
        versions: Of the interpreter and of the side's packages.
    """

    def __init__(self, side: str, folder: Path, options: dict[str, Any], python: Path | None = None) -> None:
        elsewhere = {} if python is None else {"env": _environment_without_ours(folder), "cwd": folder}
        self._process = subprocess.Popen(
            [python or sys.executable, _TURNS, side, folder, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **elsewhere,
        )
        self.versions: dict[str, str] = self._receive()

    def take_steps(self, count: int) -> Turn:
        """Take `count` steps."""
        return Turn(*self._ask(count))

    def close(self) -> float:
        """End the process; return its peak of resident memory in MB (1,000,000 bytes)."""
        peak = self._ask(0)
        self._end()
        return peak

    def _ask(self, count: int) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the process has ended: `_receive` says how
            print(count, file=self._process.stdin, flush=True)
        return self._receive()

    def _receive(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with code {self._end()}")
        answer = json.loads(line)
        if "error" in answer:
            self._end()
            raise RuntimeError(answer["error"].strip().splitlines()[0])
        return answer["answer"]

    def _end(self) -> int:
        """Wait until the process has ended; return its exit code."""
        self._process.communicate()
        return self._process.returncode


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, since a child's peak of memory starts at what its parent holds."""
    with ProcessPoolExecutor(1, mp_context=_PROCESSES) as pool:
        return pool.submit(function, *arguments).result()


def _environment_without_ours(folder: Path) -> dict[str, str]:
    """Return the environment variables, without those that lead to our packages; logs go to `folder`."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(folder)}
