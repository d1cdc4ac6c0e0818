"""The other side: transformers on torch with PEFT, and with the same adapters and biases for what PEFT has not."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from cases import BOTTLENECK, FACTOR, TOKENS
from plan import ALPHA, HEAD, Plan
from safetensors.torch import load_file
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["PACKAGES", "attach", "build_step", "starting_values"]

PACKAGES = ("torch", "transformers", "peft")  # whose versions are noted

# Those of mindspore.nn.AdamWeightDecay.
_BETAS = (0.9, 0.999)
_EPS = 1e-6

_ADAPTED = ("attention.output.dense", "output.dense")  # the layers that adapters follow, as in mindpet
_PROMPT = "mindpet_prefix_encoder.mindpet_delta_ptuning2_embedding.embedding_table"


def build_step(folder: Path, plan: Plan, brain: bool = False, compiled: bool = False) -> Callable[[Any], float]:
    """Return a function that takes one training step and returns its loss.

    Args:
        folder: What `prepare` wrote.
        plan: Its plan.
        brain: All weights, gradients and moments in bfloat16, otherwise in float32.
        compiled: With torch.compile, otherwise eager.
    """
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kind = transformers.BertForSequenceClassification if plan.pooling else transformers.AutoModelForCausalLM
    model = attach(kind.from_pretrained(folder, torch_dtype=torch.float32), plan)
    _start(model, folder)
    if brain:
        model = model.bfloat16()
    model.train()
    optimizer = _build_optimizer(model, plan)
    called = torch.compile(model) if compiled else model
    taken = 0

    def step(batch: Any) -> float:
        nonlocal taken
        taken += 1
        _undo_bias_correction(optimizer, taken, plan.schedule[taken - 1])
        arrays = {name: torch.from_numpy(array).long() for name, array in batch._asdict().items()}
        labels = arrays.pop("labels").flatten()
        arrays.pop("indices")
        logits = called(**arrays).logits.flatten(0, -2).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def attach(network: Any, plan: Plan) -> Any:
    """Return a network with the plan's method attached, and nothing else to be trained but the head."""
    if plan.pooling == "mean":
        network = _MeanClassifier(network)
    saved = {"modules_to_save": [HEAD]} if plan.pooling else {}
    if plan.method == "lora":
        targets = [*plan.targets]
        return peft.get_peft_model(
            network, peft.LoraConfig(r=plan.rank, lora_alpha=ALPHA, target_modules=targets, **saved)
        )
    if plan.method == "ptuning2":
        task = "SEQ_CLS" if plan.pooling else "CAUSAL_LM"
        return peft.get_peft_model(network, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=TOKENS))
    if plan.method == "full":
        return network
    for name, parameter in network.named_parameters():
        biased = plan.method == "bitfit" and name.endswith(".bias") and "LayerNorm" not in name
        parameter.requires_grad = biased or name.startswith(f"{HEAD}.")
    adapter = {"adapter": _Adapter, "low_rank_adapter": _LowRankAdapter}.get(plan.method)
    if adapter is not None:
        for name, layer in list(network.named_modules()):
            if name.endswith(_ADAPTED):
                parent = network.get_submodule(name.rpartition(".")[0])
                parent.dense = _Adapted(layer, plan.method, adapter(layer.out_features))
    return network


def starting_values(model: Any) -> dict[str, np.ndarray]:
    """Return the first values of what a method has added, by the names that mindpet has for it."""
    return {_our_name(n): p.detach().numpy() for n, p in model.named_parameters() if _our_name(n)}


def _our_name(name: str) -> str:
    """Return mindpet's name of a parameter that a method has added; nothing for the network's own ones."""
    if name == "prompt_encoder.default.embedding.weight":
        return _PROMPT
    for letter in "ab":
        name = name.replace(f".lora_{letter.upper()}.default.weight", f".mindpet_delta_lora_{letter}")
    return name.removeprefix("base_model.model.") if "mindpet_delta_" in name else ""


def _start(model: torch.nn.Module, folder: Path) -> None:
    values = load_file(folder / "start.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _our_name(name):
                parameter.copy_(values[_our_name(name)])


class _Adapted(torch.nn.Module):
    """A layer and what follows it, under mindpet's name."""

    def __init__(self, layer: torch.nn.Module, method: str, adapter: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.name = f"mindpet_delta_{method}"
        self.add_module(self.name, adapter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.name)(self.layer(x))


class _Adapter(torch.nn.Module):
    """x + gelu(x W_down^T + b_down) W_up^T + b_up (arXiv:1902.00751)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        down, up = torch.nn.Linear(width, BOTTLENECK), torch.nn.Linear(BOTTLENECK, width)
        torch.nn.init.normal_(down.weight, std=0.01)
        for zeros in (down.bias, up.weight, up.bias):
            torch.nn.init.zeros_(zeros)
        names = ("mindpet_delta_adapter_down_sampler", "mindpet_delta_adapter_up_sampler")
        self.mindpet_delta_adapter_block = torch.nn.ModuleDict(dict(zip(names, (down, up), strict=True)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down, up = self.mindpet_delta_adapter_block.values()
        return x + up(torch.nn.functional.gelu(down(x), approximate="tanh"))


class _Product(torch.nn.Module):
    """A linear map whose matrix is the product of two of rank 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mindpet_delta_low_rank_adapter_weight_left = torch.nn.Parameter(torch.empty(inputs, 1))
        self.mindpet_delta_low_rank_adapter_weight_right = torch.nn.Parameter(torch.empty(1, outputs))
        for weight in self.parameters():
            torch.nn.init.xavier_uniform_(weight)
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = (
            self.mindpet_delta_low_rank_adapter_weight_left,
            self.mindpet_delta_low_rank_adapter_weight_right,
        )
        return x @ (left @ right) + self.bias


class _LowRankAdapter(torch.nn.Module):
    """An adapter whose two matrices are such products (arXiv:2106.04647)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mindpet_delta_low_rank_adapter_down_sampler = _Product(width, width // FACTOR)
        self.mindpet_delta_low_rank_adapter_up_sampler = _Product(width // FACTOR, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.mindpet_delta_low_rank_adapter_down_sampler(x), approximate="tanh")
        return x + self.mindpet_delta_low_rank_adapter_up_sampler(hidden)


class _MeanClassifier(torch.nn.Module):
    """BERT, the mean over the tokens that are no padding, and a linear head; the pooler is left out."""

    def __init__(self, network: transformers.BertForSequenceClassification) -> None:
        super().__init__()
        self.bert, self.classifier, self.config = network.bert, network.classifier, network.config
        self.bert.pooler = None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> SequenceClassifierOutput:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return SequenceClassifierOutput(logits=self.classifier(mean))


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
