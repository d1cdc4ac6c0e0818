"""The tool itself: what is no answer of the planner is an error, never a pass."""

import json

import pytest

from tests.planner import cuda_stubs as stubs
from tests.planner.graph import DEVICES, Plan, read_plan
from tests.planner.planner import Answers, Failure, Refusal

pytestmark = pytest.mark.slow

_GRAPH = """\
%para1_x: <Tensor[Float32], (64, 256)> : [64, 256]
%para2_weight: <Ref[Tensor[Float32]], (128, 256), ref_key=net.weight, is_parameter>  :  has_default
%para3_bias: <Ref[Tensor[Float32]], (128), ref_key=net.bias, is_parameter>  :  has_default
  %0(a) = _VirtualDataset(%para1_x) {instance name: _VirtualDataset} attrs: {in_strategy: ((8, 1))} {in_strategy: ((8, 1))}
      # Scope: (Default)
  %1(b) = PrimFunc_MatMul(%0, %2) {instance name: matmul} attrs: {in_strategy: ((1, 1), (1, 1))} {in_strategy: ((2, 1), (4, 1))}
      # Scope: (Default/net-Dense)
  %3(c) = PrimFunc_Dropout(%1) {instance name: redistribution_op_5} {in_strategy: ((2, 1))}
      # Scope: (Default/net-Dense/dropout-Dropout)
  %4(d) = PrimFunc_Mul(%3, 2) {instance name: mul} attrs: {x: 1} {in_strategy: ((2, 4), ())}
      # Scope: (Default)
  %5(e) = AllReduce(%4) {instance name: forward_op_1} attrs: {group_ranks: "0-1-2-3", index: I64(0)}
      # Scope: (Default)
  %6(f) = AllGather(%5) {instance name: forward_op_2} attrs: {group_ranks: "WORLD_GROUP", rank_size: I64(8)}
      # Scope: (Default)
"""  # noqa: E501
_NO_DEVICE = ["RuntimeError", "Cuda error: no device"]
_REFUSED = ["RuntimeError", "Failure:operator Add init failed\n[ERROR] PARALLEL(1,python): it requires 16 devices"]


def test_a_graph_is_read():
    assert read_plan(_GRAPH) == Plan(
        slices={"net.weight": (128, 256), "net.bias": (128,)},
        strategies={"net.matmul": ((2, 1), (4, 1)), "net.dropout.dropout": ((2, 1),), "mul": ((2, 4), ())},
        batch=((8, 1),),
        collectives=[("AllReduce", 4), ("AllGather", 8)],
    )


def _answer(folder, *outcomes, stages=()):
    """Return the answer where each device told the outcome of its turn and left graphs of the `stages`."""
    for rank in range(DEVICES):
        line = json.dumps(["net", *outcomes[rank % len(outcomes)]])
        (folder / f"device_{rank}.jsonl").write_text(line + "\n")
        graphs = folder / "net" / f"rank_{rank}"
        graphs.mkdir(parents=True)
        for stage in stages:
            (graphs / f"step_parallel_{stage}_0007.ir").write_text(_GRAPH)
    return Answers(folder)["net"]


def test_a_graph_and_the_missing_device_are_a_plan(tmp_path):
    assert _answer(tmp_path, _NO_DEVICE, stages=("begin", "end")) == read_plan(_GRAPH)


def test_an_error_of_the_planner_is_a_refusal(tmp_path):
    assert _answer(tmp_path, _REFUSED, stages=("begin",)) == Refusal(_REFUSED[1])


def test_an_error_before_the_planner_is_a_failure(tmp_path):
    assert _answer(tmp_path, ["TypeError", "no argument 'x'"]) == Failure("TypeError", "no argument 'x'")


@pytest.mark.parametrize(
    ("outcomes", "stages", "message"),
    [
        ([_NO_DEVICE], ("begin",), "no graph, and no error of the planner"),
        ([["RuntimeError", "killed"]], ("begin",), "no graph, and no error of the planner"),
        ([_REFUSED], ("begin", "end"), "an error other than the missing device"),
        ([["", ""]], ("begin", "end"), "compiled to the end"),
        ([_NO_DEVICE, ["", ""]], ("begin", "end"), "compiled to the end"),
    ],
)
def test_anything_else_is_an_error(tmp_path, outcomes, stages, message):
    with pytest.raises(RuntimeError, match=message):
        _answer(tmp_path, *outcomes, stages=stages)


def test_devices_that_disagree_are_an_error(tmp_path):
    _answer(tmp_path, _NO_DEVICE, stages=("begin", "end"))
    graph = tmp_path / "net" / "rank_3" / "step_parallel_end_0007.ir"
    graph.write_text(_GRAPH.replace("(128, 256)", "(64, 256)"))
    with pytest.raises(RuntimeError, match="told different things"):
        _ = Answers(tmp_path)["net"]


def test_a_device_that_stood_still_is_left_out(tmp_path):
    plan = _answer(tmp_path, _NO_DEVICE, stages=("begin", "end"))
    (tmp_path / "device_0.jsonl").unlink()
    (tmp_path / "device_1.jsonl").write_text('["net", "Runt')
    assert Answers(tmp_path)["net"] == plan


def test_a_case_of_which_no_device_told_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no device told"):
        _ = Answers(tmp_path)["net"]


@pytest.mark.parametrize("missing", [("gcc",), ("nm",), ("gcc", "nm")])
def test_missing_tools_are_an_error_that_names_them(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(stubs.shutil, "which", lambda tool: None if tool in missing else f"/usr/bin/{tool}")
    with pytest.raises(RuntimeError, match=f"{' and '.join(missing)} not found.*binutils"):
        stubs.build_stubs(tmp_path / "stubs")


def test_a_wheel_without_the_plugin_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stubs, "_PLUGINS", ("libmindspore_gpu.so.99",))
    with pytest.raises(RuntimeError, match=r"carries no libmindspore_gpu.so.99.*x86-64"):
        stubs.build_stubs(tmp_path / "stubs")
