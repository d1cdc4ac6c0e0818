"""Our side: the code path of `mindpet finetune`, with native twins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mindspore
from cases import BOTTLENECK, FACTOR, TOKENS
from mindspore import Tensor, nn
from plan import ALPHA, HEAD, Plan
from safetensors.numpy import load_file

from mindpet import kernels
from mindpet.models.auto import load_causal_lm
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.blocks import Blocks
from mindpet.train.losses import ClassificationLoss, LanguageLoss
from mindpet.train.optimizer import build_optimizer
from mindpet.train.step import TrainStep
from mindpet.tuning.accelerate import accelerate
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.registry import METHODS

__all__ = ["PACKAGES", "build_step", "compile_layers_as_they_are", "make_step"]

PACKAGES = ("mindpet", "mindspore")  # whose versions are noted


def build_step(folder: Path, plan: Plan, kind: str = "f32", graph: bool = True) -> Callable[[Any], float]:
    """Return a function that takes one training step and returns its loss.

    Args:
        folder: What `prepare` wrote.
        plan: Its plan.
        kind: The kernels, 'off', 'f32' or 'bf16'.
        graph: Graph mode, otherwise PyNative mode.
    """
    step = make_step(folder, plan, kind, graph)
    return lambda batch: step(batch).loss


def make_step(folder: Path, plan: Plan, kind: str, graph: bool) -> TrainStep:
    """Return the training step; arguments as of `build_step`."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE if graph else mindspore.PYNATIVE_MODE)
    kernels.use_kernels(kind)
    network = _load(folder, plan)
    if plan.method != "full":
        config = METHODS[plan.method].config(**_fields(plan))
        get_peft_model(network, config, compute_dtype=mindspore.float32)
        _start(network, folder)
    accelerate(network)
    optimizer = build_optimizer(
        network,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        head_learning_rate=plan.head_learning_rate,
        warmup_ratio=plan.warmup_ratio,
        weight_decay=plan.weight_decay,
        is_head=lambda name: name.startswith(f"{HEAD}."),
    )
    return TrainStep(network, optimizer, scale_loss=False, loss=ClassificationLoss if plan.pooling else LanguageLoss)


def compile_layers_as_they_are() -> None:
    """Let no layer be a block in what this process compiles from now on."""
    Blocks.in_place = lambda blocks: nullcontext()


def _load(folder: Path, plan: Plan) -> nn.Cell:
    if plan.pooling is None:
        return load_causal_lm(folder, dropout=0.0)
    return BertForSequenceClassification.from_pretrained(folder, plan.num_labels, plan.pooling, dropout=0.0)


def _fields(plan: Plan) -> dict[str, Any]:
    """Return the fields of the method's configuration."""
    own: dict[str, dict[str, Any]] = {
        "lora": {"r": plan.rank, "lora_alpha": ALPHA, "target_modules": plan.targets},
        "adapter": {"bottleneck_size": BOTTLENECK},
        "low_rank_adapter": {"reduction_factor": FACTOR},
        "ptuning2": {"num_virtual_tokens": TOKENS},
    }
    return own.get(plan.method, {}) | ({"modules_to_save": (HEAD,)} if plan.pooling else {})


def _start(network: nn.Cell, folder: Path) -> None:
    values = load_file(folder / "start.safetensors")
    parameters = {p.name: p for p in network.trainable_params() if "mindpet_delta_" in p.name}
    if parameters.keys() != values.keys():
        raise ValueError(f"the two sides train other parameters: {sorted(parameters.keys() ^ values.keys())}")
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(values[name].reshape(parameter.shape)))
