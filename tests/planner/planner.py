"""Asks MindSpore's parallel planner how it splits networks over 8 devices, on a machine without any.

Eight processes stand for the devices, brought together by MindSpore's own scheduler on the CPU; stand-ins for CUDA let
each load the plugin that the planner demands. Compiling runs through the planner and fails afterwards, where kernels
would be built.
"""

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mindspore import nn

from tests.planner.graph import DEVICES, Plan, read_plan

_ROOT = Path(__file__).parents[2]
# MindSpore now and then loses the notice that a group of devices is ready, and a device waits for ever. One device's
# graph is enough to judge by, so that those that stand still are left behind once another has told everything.
_PATIENCE = 60
_SECONDS = 300
_NO_DEVICE = "no device"
_FROM_PLANNER = r"ccsrc/frontend/parallel|\bPARALLEL\("


@dataclass(frozen=True)
class Case:
    """A network to plan: `build` makes it, once the parallel mode is set; `shape` is that of the input on all devices.

    With `full_batch` each device is given the whole input and the plan begins by cutting it; without, each is given its
    eighth.
    """

    build: Callable[[], nn.Cell]
    shape: tuple[int, ...]
    full_batch: bool = True
    parallel_mode: str = "semi_auto_parallel"


@dataclass(frozen=True)
class Refusal:
    """The planner's no: all that it said."""

    text: str


@dataclass(frozen=True)
class Failure:
    """An error that was raised before the planner was asked."""

    error: str
    text: str


class Answers:
    """What the planner made of the cases, looked up by name."""

    def __init__(self, folder):
        self.folder = folder
        self.told = [_told(folder, rank) for rank in range(DEVICES)]

    def __getitem__(self, name):
        """Return the Plan, Refusal or Failure in which all devices agree that told of this case.

        Raises:
            RuntimeError: they disagree, none told, or one has neither a graph nor an error of the planner.
        """
        answers = [self._of_device(name, rank) for rank in range(DEVICES) if name in self.told[rank]]
        if not answers:
            raise RuntimeError(f"{name}: no device told what came of it")
        if any(_gist(answer) != _gist(answers[0]) for answer in answers):
            raise RuntimeError(f"{name}: the devices were told different things: {answers}")
        return answers[0]

    def _of_device(self, name, rank):
        graphs = self.folder / name / f"rank_{rank}"
        error, text = self.told[rank][name]
        if not error:
            raise RuntimeError(f"{name}: compiled to the end, which cannot be without a device")
        if graph := _graph(graphs, "step_parallel_end"):
            if _NO_DEVICE not in text:
                raise RuntimeError(f"{name}: planned, but then came an error other than the missing device:\n{text}")
            return read_plan(graph)
        if not _graph(graphs, "step_parallel_begin"):
            return Failure(error, text)
        if _NO_DEVICE in text or not re.search(_FROM_PLANNER, text):
            raise RuntimeError(f"{name}: no graph, and no error of the planner:\n{text}")
        return Refusal(text)


def _told(folder, rank):
    """Return by case the outcomes that a device has told so far."""
    file = folder / f"device_{rank}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return {name: outcome for name, *outcome in (json.loads(line) for line in lines if line.endswith("\n"))}


def _gist(answer):
    return answer if isinstance(answer, Plan) else type(answer)


def _graph(folder, stage):
    """Return the graph that a device wrote at this stage; '' where it wrote none."""
    found = sorted(folder.glob(f"{stage}_*.ir"))
    return found[-1].read_text() if found else ""


def ask_planner(module, stubs, folder):
    """Have the planner split each of the module's `CASES` and return its Answers.

    Args:
        module: the name of a module whose `CASES` maps names to Case.
        stubs: the folder of the stand-ins for CUDA.
        folder: an empty folder for the graphs.

    Raises:
        RuntimeError: a device was lost, or all stood still.
    """
    _run(module, list(importlib.import_module(module).CASES), stubs, folder)
    return Answers(folder)


def _run(module, names, stubs, folder):
    environment = os.environ | {
        "PYTHONPATH": _with("PYTHONPATH", _ROOT),
        "LD_LIBRARY_PATH": _with("LD_LIBRARY_PATH", stubs / "lib64"),
        "CUDA_HOME": str(stubs),
        "GLOG_v": "3",
        "MS_DEV_DUMP_IR_PASSES": "step_parallel",
        "OMP_NUM_THREADS": "1",
        "MS_WORKER_NUM": str(DEVICES),
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": str(_free_port()),
    }
    command = [sys.executable, "-m", "tests.planner.device", str(folder), module, *names]
    roles = [{"MS_ROLE": "MS_SCHED"}]
    roles += [{"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)} for rank in range(DEVICES)]
    processes = []
    try:
        for number, role in enumerate(roles):
            with (folder / f"process_{number}.log").open("w") as log:
                streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
                processes.append(subprocess.Popen(command, cwd=folder, env=environment | role, **streams))
        _await(processes, folder, len(names))
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _with(variable, folder):
    """Return the paths of an environment variable, `folder` before the others."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get(variable)])])


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _await(processes, folder, cases):
    """Wait until the devices have told all, or one of them has and the others stand still."""
    told, since = None, time.monotonic()
    while told is None or min(told) < cases:
        time.sleep(0.2)
        before, told = told, [len(_told(folder, rank)) for rank in range(DEVICES)]
        if told != before:
            since = time.monotonic()
        quiet = time.monotonic() - since
        if max(told) == cases and quiet > _PATIENCE:
            return
        lost = [number for number, process in enumerate(processes) if process.poll() is not None]
        if lost or quiet > _SECONDS:
            why = f"process {lost[0]} was lost" if lost else f"no device went on within {_SECONDS} s"
            log = (folder / f"process_{lost[0] if lost else 1}.log").read_text()[-3000:]
            raise RuntimeError(f"{why}; the end of its log, which names each network before it is planned:\n{log}")
