"""MindPet 1.0.4: MindFormers' BERT with its LoRADense, in an environment of its own that lacks MindPet 2.

`mindpet` is version 1.0.4 here, so that nothing of this repository's package may be imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindformers.models.bert.bert import BertForMultipleChoice
from mindformers.models.bert.bert_config import BertConfig
from mindformers.modules.layers import LayerNorm, Linear
from mindformers.pet.pet_config import LoraConfig
from mindformers.pet.tuners.lora_adapter import LoraAdapter
from mindspore import Tensor, nn, ops
from plan import ALPHA, HEAD, Plan, read_batches
from safetensors.numpy import load_file

__all__ = ["PACKAGES", "build_step"]

PACKAGES = ("mindpet", "mindspore", "mindformers")  # whose versions are noted

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_LAYERS = {"query": "dense1", "key": "dense2", "value": "dense3"}  # of attention, by MindFormers' names
# MindFormers' name of each part of a parameter's name, as its own conversion script has them, and transformers'.
_NAMES = (
    (r"^bert\.word_embedding\.embedding_table", "bert.embeddings.word_embeddings.weight"),
    (r"^bert\.embedding_postprocessor\.layernorm", "bert.embeddings.LayerNorm"),
    (r"^bert\.embedding_postprocessor\.full_(\w+)\.embedding_table", r"bert.embeddings.\1s.weight"),
    (r"^bert\.embedding_postprocessor\.(\w+)\.embedding_table", r"bert.embeddings.\1s.weight"),
    (r"^bert\.dense", "bert.pooler.dense"),
    (r"\bbert_encoder\.encoder\.blocks", "encoder.layer"),
    *((rf"\battention\.{theirs}", f"attention.self.{ours}") for ours, theirs in _LAYERS.items()),
    (r"\battention\.projection", "attention.output.dense"),
    (r"\boutput\.mapping", "intermediate.dense"),
    (r"\boutput\.projection", "output.dense"),
    (r"\blayernorm1", "output.LayerNorm"),
    (r"\blayernorm2", "attention.output.LayerNorm"),
    (r"\bgamma$", "weight"),
    (r"\bbeta$", "bias"),
)


def build_step(folder: Path, plan: Plan) -> Callable[[Any], float]:
    """Return a function that takes one training step and returns its loss.

    Args:
        folder: What `prepare` wrote.
        plan: Its plan, which must be of LoRA on a BERT with its pooler: MindFormers has no other one.

    Raises:
        ValueError: The plan is of something else.
    """
    if (plan.method, plan.pooling) != ("lora", "pooler"):
        raise ValueError(f"takes lora with BERT's pooler only, not {plan.method} with pooling {plan.pooling}")
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    network = _network(config, plan, read_batches(folder)[0].input_ids.shape[1])
    targets = "|".join(_LAYERS[target] for target in plan.targets)
    LoraAdapter.get_pet_model(
        network, LoraConfig(lora_rank=plan.rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=f"^({targets})$")
    )
    _load(network, load_file(folder / "model.safetensors") | load_file(folder / "start.safetensors"))
    train = nn.TrainOneStepCell(network, _optimizer(network, plan)).set_train()

    def step(batch: Any) -> float:
        inputs = (batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.labels)
        return float(train(*map(Tensor, inputs)).asnumpy())

    return step


def _network(config: dict[str, Any], plan: Plan, length: int) -> nn.Cell:
    """Return MindFormers' classifier; it computes what that of transformers does, but for its GELU.

    MindFormers hands the float32 of its configuration to the weights alone and computes in float16, and has no other
    epsilon to choose. Its GELU is the tanh approximation, a single operation; the exact one, of several, takes as
    long and 1.3 GB more, and moves the losses by 2e-5.
    """
    network = BertForMultipleChoice(
        BertConfig(
            **{size: config[size] for size in _SIZES},
            seq_length=length,
            num_labels=plan.num_labels,
            dropout_prob=0.0,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            compute_dtype="float32",
        )
    )
    for _, cell in network.cells_and_names():
        if getattr(cell, "dtype", None) == mindspore.float16:
            cell.dtype = mindspore.float32
        if isinstance(cell, LayerNorm):
            cell.layer_norm = ops.LayerNorm(-1, -1, epsilon=config["layer_norm_eps"])
    return network


def _load(network: nn.Cell, values: dict[str, np.ndarray]) -> None:
    """Set every parameter, and let none be trained but LoRA's and the head's."""
    linear = {name: cell for name, cell in network.cells_and_names() if isinstance(cell, Linear)}
    turned = {f"{name}.weight" for name, cell in linear.items() if not cell.transpose_b}
    for name, parameter in network.parameters_and_names():
        parameter.name = name
        parameter.requires_grad = "mindpet_delta_lora_" in name or name.startswith(f"{HEAD}.")
        value = values.pop(_their_name(name))
        parameter.set_data(Tensor(np.ascontiguousarray(value.T) if name in turned else value))
    if values:
        raise ValueError(f"MindFormers has no place for {sorted(values)}")


def _their_name(name: str) -> str:
    """Return the name that transformers has for a parameter of MindFormers'."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _optimizer(network: nn.Cell, plan: Plan) -> nn.AdamWeightDecay:
    """Return the optimizer that `mindpet.train.optimizer` of MindPet 2 makes."""
    groups: dict[tuple[bool, bool], list[mindspore.Parameter]] = {}
    for parameter in network.trainable_params():
        groups.setdefault((parameter.name.startswith(f"{HEAD}."), parameter.ndim > 1), []).append(parameter)
    rates = {
        head: [peak * share for share in plan.schedule]
        for head, peak in ((False, plan.learning_rate), (True, plan.head_learning_rate))
    }
    return nn.AdamWeightDecay(
        [
            {"params": parameters, "lr": rates[head], "weight_decay": plan.weight_decay if decayed else 0.0}
            for (head, decayed), parameters in groups.items()
        ],
        learning_rate=rates[False],
    )
