import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIDE = """
import os
import numpy

PACKAGES = ("numpy",)


def build_step(folder, plan, fails="", **seen):
    assert {name: os.environ.get(name) for name in seen} == seen
    print("this is no answer")
    if fails == "loading":
        raise ValueError("cannot be loaded\\nwith a second line")

    def step(batch):
        print("nor is this")
        if fails == "stepping":
            os._exit(3)
        return float(batch.input_ids.sum() + plan.rank)

    return step
"""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start the process of a side of two batches, in which a step's loss is the sum of the batch and the rank, 4."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from worker import Worker

    (tmp_path / "their_side.py").write_text(SIDE, encoding="utf-8")
    plan = {"title": "", "learning_rate": 1, "head_learning_rate": 1, "rank": 4}
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    arrays = {"labels": np.zeros((2, 1)), "input_ids": np.array([[1, 2], [10, 20]])}
    save_file(arrays, tmp_path / "batches.safetensors")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda python=None, **options: Worker("their_side", tmp_path, options, python)


@pytest.fixture
def other_python(tmp_path):
    """Return what stands for the interpreter of another environment, which has the side in it."""
    interpreter = tmp_path / "python"
    ours, theirs = shlex.quote(sys.executable), shlex.quote(str(tmp_path))
    command = f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:"{theirs} exec {ours} "$@"\n'
    interpreter.write_text(command, encoding="utf-8")
    interpreter.chmod(0o755)
    return interpreter


def take_turns(worker):
    turns = [worker.take_steps(count) for count in (1, 4)]
    assert [turn.losses for turn in turns] == [[7.0], [34.0, 7.0, 34.0, 7.0]]
    assert [len(turn.seconds) for turn in turns] == [1, 4]
    assert all(0 <= turn.busy < 1 and 0 <= turn.idle_busy < 1 for turn in turns)
    assert worker.versions == {"Python": sys.version.split()[0], "numpy": np.__version__}
    assert 5 < worker.close() < 5000


def test_a_side_takes_turns(start):
    take_turns(start())


def test_a_side_takes_turns_in_another_environment_and_sees_nothing_of_ours(start, other_python, tmp_path):
    take_turns(start(other_python, PYTHONPATH=f":{tmp_path}", HOME=str(tmp_path)))


def test_a_side_that_cannot_be_loaded_says_why(start):
    with pytest.raises(RuntimeError, match=r"^ValueError: cannot be loaded$"):
        start(fails="loading")


def test_a_side_whose_process_ends_is_reported(start):
    worker = start(fails="stepping")
    with pytest.raises(RuntimeError, match="ended with code 3"):
        worker.take_steps(1)
