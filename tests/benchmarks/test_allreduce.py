import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scale import FULL
from tests.tiny import write_bert, write_task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# As MindSpore writes them.
GRAPH = """
  %21(new_grad) = AllReduce(%20) {instance name: allreduce} primitive_attrs: {group: "mccl_world_group"}
      : (<Tensor[Float32], (200)>) -> (<Tensor[Float32], (200)>)
      # Fullname with scope: (Default/grad_reducer-DistributedGradReducer/AllReduce-op0)
  %22(new_grad) = Mul(%21, %3) {instance name: mul} primitive_attrs: {}
      : (<Tensor[Float32], (200)>, <Tensor[Float32], ()>) -> (<Tensor[Float32], (200)>)
  %26(new_grad) = AllReduce(%25) {instance name: allreduce} primitive_attrs: {group: "mccl_world_group"}
      : (<Tensor[Float16], (10, 200)>) -> (<Tensor[Float16], (10, 200)>)
"""


@pytest.fixture
def allreduce(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import allreduce

    return allreduce


def test_the_all_reduced_tensors_of_a_graph_are_found(allreduce, tmp_path):
    (tmp_path / "rank_0").mkdir()
    (tmp_path / "rank_0" / "21_validate_0076.ir").write_text(GRAPH)
    (tmp_path / "rank_0" / "20_other_0075.ir").write_text(GRAPH)
    assert allreduce.reduced_tensors(tmp_path) == [800, 4000]
    (tmp_path / "rank_0" / "21_validate_0077.ir").write_text(GRAPH)
    with pytest.raises(SystemExit, match="2 graphs"):
        allreduce.reduced_tensors(tmp_path)


def test_the_size_of_a_scalar(allreduce):
    assert allreduce.size_of("Float32", "") == 4


@pytest.mark.slow
def test_exactly_the_trained_parameters_are_all_reduced(tmp_path):
    model, data = write_bert(tmp_path / "model"), write_task(tmp_path / "task.jsonl")
    methods = ["lora", *(["bitfit"] if FULL else []), "full"]
    flags = [flag for method in methods for flag in ("--method", method)]
    command = [sys.executable, BENCHMARKS / "allreduce.py", *flags, "--model", model, "--data", data]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows = [re.findall(r"[\d,]+(?= bytes)", line) for line in run.stdout.splitlines() if " bytes" in line]
    trained, reduced, written = ([int(row[place].replace(",", "")) for row in rows] for place in range(3))
    assert len(rows) == len(methods)
    assert trained == reduced
    assert all(there >= here for here, there in zip(reduced, written, strict=True))
    assert max(trained[:-1]) < trained[-1]
