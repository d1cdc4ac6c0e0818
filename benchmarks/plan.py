"""What every side reads of the files that `cases.prepare` wrote; it needs NumPy and safetensors alone.

The side of MindPet 1.0.4 imports it where `mindpet` is another package than here.
"""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ALPHA", "HEAD", "METHODS", "Plan", "R", "read_batches", "read_plan"]

METHODS = ("lora", "full", "adapter", "low_rank_adapter", "bitfit", "ptuning2")
R, ALPHA = 8, 16
HEAD = "classifier"

_FIELDS = ("input_ids", "attention_mask", "token_type_ids", "labels", "indices")  # of mindpet's batches, in order


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that are no arrays.

    Attributes:
        title: What is trained, in a few words.
        learning_rate: Peak learning rate of the method.
        head_learning_rate: Peak learning rate of the head.
        targets: The layers that LoRA adapts.
        pooling: What the head sees, 'mean' or 'pooler'; None for a language model.
        num_labels: Number of classes; of a language model 0.
        method: One of METHODS.
        rank: LoRA's.
        warmup_ratio: Share of the steps over which the learning rates rise.
        weight_decay: Decay of matrices; vectors are not decayed.
        steps: Number of steps of the run, over which the learning rates rise and fall.
        schedule: The learning rate of each step as a share of the peak.
    """

    title: str
    learning_rate: float
    head_learning_rate: float
    targets: tuple[str, ...] = ("query", "value")
    pooling: str | None = None
    num_labels: int = 0
    method: str = METHODS[0]
    rank: int = R
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    steps: int = 0
    schedule: tuple[float, ...] = ()


def read_plan(folder: Path) -> Plan:
    """Return the plan that `prepare` wrote."""
    return Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))


def read_batches(folder: Path) -> list[Any]:
    """Return the batches that `prepare` wrote: named tuples of arrays, as mindpet's own."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / "batches.safetensors")
    names = [name for name in _FIELDS if name in arrays]
    return [*map(namedtuple("Batch", names), *(arrays[name] for name in names))]
