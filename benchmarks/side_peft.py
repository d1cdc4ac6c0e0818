"""The other side: transformers and PEFT on torch, float32, eager, with transformers' default attention."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from cases import HEAD, Plan, lora_config, lora_key
from safetensors.torch import load_file
from transformers.modeling_outputs import SequenceClassifierOutput

from mindpet.data.batches import Batch

__all__ = ["build_step"]

# Those of mindspore.nn.AdamWeightDecay.
_BETAS = (0.9, 0.999)
_EPS = 1e-6


def build_step(folder: Path, plan: Plan) -> Callable[[Batch], float]:
    """Return a function that takes one training step and returns its loss."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    network = transformers.BertForSequenceClassification.from_pretrained(folder)
    model = peft.get_peft_model(_MeanClassifier(network) if plan.pooling == "mean" else network, lora_config())
    _load_lora(model, folder)
    model.train()
    optimizer = _build_optimizer(model, plan)
    taken = 0

    def step(batch: Batch) -> float:
        nonlocal taken
        taken += 1
        _undo_bias_correction(optimizer, taken, plan.schedule[taken - 1])
        input_ids, attention_mask, token_type_ids, labels = (torch.from_numpy(array).long() for array in batch[:4])
        outputs = model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels, ignore_index=-1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


class _MeanClassifier(torch.nn.Module):
    """BERT, the mean over the tokens that are no padding, and a linear head; the pooler is left out."""

    def __init__(self, network: transformers.BertForSequenceClassification) -> None:
        super().__init__()
        self.bert, self.classifier = network.bert, network.classifier
        self.bert.pooler = None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> SequenceClassifierOutput:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.classifier(mean))


def _load_lora(model: torch.nn.Module, folder: Path) -> None:
    values = load_file(folder / "lora.safetensors")
    parameters = {lora_key(name): p for name, p in model.named_parameters() if "lora_" in name}
    if parameters.keys() != values.keys():
        raise ValueError(f"other layers are adapted than were prepared: {sorted(parameters.keys() ^ values.keys())}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


def _build_optimizer(model: torch.nn.Module, plan: Plan) -> torch.optim.AdamW:
    """Return AdamW with the groups of `mindpet.train.optimizer`: the head and the rest, matrices and vectors."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((f"{HEAD}." in name, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "peak": plan.head_learning_rate if head else plan.learning_rate,
                "decay": plan.weight_decay if decayed else 0.0,
            }
            for (head, decayed), parameters in groups.items()
        ],
        betas=_BETAS,
        fused=True,
    )


def _undo_bias_correction(optimizer: torch.optim.AdamW, step: int, share: float) -> None:
    """Choose the numbers with which AdamW's step number `step`, from 1, is one of `mindspore.nn.AdamWeightDecay`.

    AdamW divides m by c = 1 - beta1^step and sqrt(v) by d = sqrt(1 - beta2^step). With learning rate lr c / d, eps / d
    and weight decay decay d / c its update is lr (m / (sqrt(v) + eps) + decay w), which has no correction.

    Args:
        optimizer: Its groups hold `peak`, the highest learning rate, and `decay`.
        step: The number of the step that comes next.
        share: The learning rate of that step as a share of the peak.
    """
    first, second = 1 - _BETAS[0] ** step, math.sqrt(1 - _BETAS[1] ** step)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share * first / second
        group["eps"] = _EPS / second
        group["weight_decay"] = group["decay"] * second / first
