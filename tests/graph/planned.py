"""The networks from whose planning the strategy files in `strategies/` come: pretraining, and LoRA on the result.

`python -m tests.graph.planned STUBS WORK` plans them over 8 devices and writes the files anew; STUBS and WORK are
folders that do not exist yet. Beside the strategies stands `slices.json`: what one device keeps of each parameter.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import mindspore as ms
from mindspore import nn, ops
from mindspore.communication import get_rank

from tests.graph.sharded import NARROW, CutAcross, CutTwice, make_pretrained, make_tuned
from tests.planner.cuda_stubs import build_stubs
from tests.planner.graph import DEVICES, read_plan
from tests.planner.planner import Case, ask_planner

FOLDER = Path(__file__).parent / "strategies"
_TARGET = "STRATEGY_FOLDER"
ROWS = 64


class Mean(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x):
        return ops.ReduceMean()(self.network(x))


class PipelineStep(nn.Cell):
    """A training step whose gradients are summed over the parts of a batch, as a pipeline needs it."""

    def __init__(self, network, optimizer):
        super().__init__(auto_prefix=False)
        self.network, self.optimizer = network, optimizer
        self.weights = optimizer.parameters
        self.gradient = ops.GradOperation(get_by_list=True)
        self.reducer = nn.PipelineGradReducer(self.weights)

    def construct(self, x):
        loss = self.network(x)
        gradients = self.gradient(self.network, self.weights)(x)
        return ops.depend(loss, self.optimizer(self.reducer(gradients)))


def _planned(name, make_network, has_pipeline=False, **context):
    def build():
        file = Path(os.environ[_TARGET]) / f"{name}_rank{get_rank()}.ckpt"
        ms.set_auto_parallel_context(strategy_ckpt_config={"save_file": str(file)}, **context)
        network = make_network()
        optimizer = nn.AdamWeightDecay(network.trainable_params(), 0.1)
        if has_pipeline:
            return PipelineStep(nn.PipelineCell(Mean(network), 2), optimizer)
        return nn.TrainOneStepCell(Mean(network), optimizer)

    return Case(build, (ROWS, NARROW))


def _sharing_optimizer(**options):
    return {
        "enable_parallel_optimizer": True,
        "parallel_optimizer_config": {"parallel_optimizer_threshold": 0, **options},
    }


_SHARED = _sharing_optimizer()
_SHARED_BY_TWO = _sharing_optimizer(optimizer_weight_shard_size=2)
_TWO_STAGES = {"has_pipeline": True, "pipeline_stages": 2}

CASES = {
    name: _planned(name, *arguments, **options)
    for name, arguments, options in [
        ("pretrained", [lambda: make_pretrained(4, 2)], {}),
        ("pretrained_optimizer", [lambda: make_pretrained(2, 4)], _SHARED),
        ("pretrained_pipeline", [lambda: make_pretrained(2, 2)], _TWO_STAGES),
        ("tuned", [lambda: make_tuned(2, 4)], {}),
        ("tuned_optimizer", [lambda: make_tuned(2, 4)], _SHARED),
        ("tuned_optimizer_by_two", [lambda: make_tuned(2, 4)], _SHARED_BY_TWO),
        ("tuned_pipeline", [lambda: make_tuned(2, 2)], _TWO_STAGES),
        ("across_optimizer", [CutAcross], _SHARED),
        ("across_optimizer_by_two", [CutAcross], _SHARED_BY_TWO),
        ("twice", [CutTwice], {}),
        ("twice_optimizer", [CutTwice], _SHARED),
    ]
}


def plan_strategies(stubs, work, folder):
    """Plan the cases and write the strategy file of each, or of each stage, and slices.json into `folder`."""
    made = work / "made"
    made.mkdir(parents=True)
    os.environ[_TARGET] = str(made)
    graphs = work / "graphs"
    graphs.mkdir()
    ask_planner("tests.graph.planned", stubs, graphs)
    slices = {}
    for name in CASES:
        for stage, rank in enumerate((0, DEVICES // 2) if "pipeline" in name else (0,)):
            stem = f"{name}_stage{stage}" if "pipeline" in name else name
            shutil.copyfile(made / f"{name}_rank{rank}.ckpt", folder / f"{stem}.ckpt")
            graph = max((graphs / name / f"rank_{rank}").glob("step_parallel_end_*.ir"))
            slices[stem] = {key: list(shape) for key, shape in sorted(read_plan(graph.read_text()).slices.items())}
    (folder / "slices.json").write_text(json.dumps(slices, indent=1) + "\n")


if __name__ == "__main__":
    build_stubs(Path(sys.argv[1]))
    plan_strategies(Path(sys.argv[1]), Path(sys.argv[2]), FOLDER)
