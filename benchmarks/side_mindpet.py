"""Our side: the code path of `mindpet finetune`, graph mode, float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mindspore
from cases import ALPHA, HEAD, TARGETS, Plan, R
from mindspore import Tensor
from safetensors.numpy import load_file

from mindpet.data.batches import Batch
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.optimizer import build_optimizer
from mindpet.train.step import TrainStep
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.config import LoraConfig

__all__ = ["build_step"]


def build_step(folder: Path, plan: Plan) -> Callable[[Batch], float]:
    """Return a function that takes one training step and returns its loss."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    network = BertForSequenceClassification.from_pretrained(folder, plan.num_labels, plan.pooling, dropout=0.0)
    config = LoraConfig(r=R, lora_alpha=ALPHA, target_modules=TARGETS, modules_to_save=(HEAD,))
    get_peft_model(network, config, compute_dtype=mindspore.float32)
    _load_lora(network, folder)
    optimizer = build_optimizer(
        network,
        steps=plan.steps,
        learning_rate=plan.learning_rate,
        head_learning_rate=plan.head_learning_rate,
        warmup_ratio=plan.warmup_ratio,
        weight_decay=plan.weight_decay,
        is_head=lambda name: name.startswith(f"{HEAD}."),
    )
    step = TrainStep(network, optimizer, scale_loss=False)
    return lambda batch: step(batch).loss


def _load_lora(network: BertForSequenceClassification, folder: Path) -> None:
    values = load_file(folder / "lora.safetensors")
    parameters = {p.name.replace("mindpet_delta_", ""): p for p in network.trainable_params() if "lora_" in p.name}
    if parameters.keys() != values.keys():
        raise ValueError(f"the two sides adapt other layers: {sorted(parameters.keys() ^ values.keys())}")
    for name, parameter in parameters.items():
        parameter.set_data(Tensor(values[name]))
