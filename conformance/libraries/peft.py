"""Hugging Face PEFT on transformers. It names no refusals: it loads many a damaged adapter with a warning only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers


def logits(base: Path, adapter: Path | None, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits of a base with an adapter, or with none."""
    model = load_base(base)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    return run(model, inputs)


def load_base(base: Path) -> Any:
    """Return the model of transformers in a folder, in float32 and without dropout."""
    (architecture,) = json.loads((base / "config.json").read_text("utf-8"))["architectures"]
    return getattr(transformers, architecture).from_pretrained(base, dtype=torch.float32).eval()


def run(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return a model's logits."""
    with torch.no_grad():
        return model(**{name: torch.from_numpy(values).long() for name, values in inputs.items()}).logits.numpy()
