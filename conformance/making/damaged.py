"""Sound adapters changed in ways that no reader may overlook."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from making.by_peft import ADAPTERS, CONFIG_FILE, ORIGIN
from making.case import Case

__all__ = ["DAMAGES", "Damage", "make"]

TENSOR_FILE = "adapter_model.safetensors"

_QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
_A, _B = f"{_QUERY}.lora_A.weight", f"{_QUERY}.lora_B.weight"

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Damage:
    """What is done to a sound adapter.

    Attributes:
        name: The case's name.
        sound: The adapter's.
        reason: Why the result must be refused.
        edit: What changes the folder.
        base: What it is to be loaded into; None for the sound adapter's.
    """

    name: str
    sound: str
    reason: str
    edit: Callable[[Path], None]
    base: str | None = None

    @property
    def case(self) -> Case:
        """What the manifest says of it."""
        sound = next(case for case in ADAPTERS if case.name == self.sound)
        origin = f"{ORIGIN}; {self.sound}, then damaged"
        return Case(self.name, sound.method, "damaged", self.base or sound.base, origin, reason=self.reason)


def make(damage: Damage, adapters: Path) -> None:
    """Write a damaged adapter beside the sound ones."""
    shutil.copytree(adapters / damage.sound, adapters / damage.name)
    damage.edit(adapters / damage.name)


def _cut(name: str, share: float) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return edit


def _tensors(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        changed = change(load_file(folder / TENSOR_FILE))
        kept = {name: np.ascontiguousarray(tensor) for name, tensor in changed.items()}
        save_file(kept, folder / TENSOR_FILE, {"format": "pt"})

    return edit


def _config(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / CONFIG_FILE).read_text("utf-8")) | fields
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")

    return edit


def _set(name: str, value: float) -> Callable[[Path], None]:
    def change(tensors: Tensors) -> Tensors:
        tensors[name].flat[0] = value
        return tensors

    return _tensors(change)


def _drop(part: str) -> Callable[[Path], None]:
    return _tensors(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def _rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    return _tensors(lambda tensors: {change(name): tensor for name, tensor in tensors.items()})


def _grow_header(folder: Path) -> None:
    """Let the length of the header, the first eight bytes, point behind the file's end."""
    content = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes((1 << 40).to_bytes(8, "little") + content[8:])


DAMAGES = [
    Damage("damaged-cut-tensors", "peft-lora", "half of the file of tensors is lost", _cut(TENSOR_FILE, 0.5)),
    Damage("damaged-cut-config", "peft-lora", "half of adapter_config.json is lost", _cut(CONFIG_FILE, 0.5)),
    Damage("damaged-header", "peft-lora", "the header of the tensors claims to be 1 TiB long", _grow_header),
    Damage("damaged-nan", "peft-lora", "lora_B holds NaN", _set(_B, np.nan)),
    Damage("damaged-infinite", "peft-lora", "lora_A holds an infinite number", _set(_A, -np.inf)),
    Damage(
        "damaged-integers",
        "peft-lora",
        "lora_A holds whole numbers (int32)",
        _tensors(lambda tensors: tensors | {_A: (tensors[_A] * 100).astype(np.int32)}),
    ),
    Damage("damaged-no-b", "peft-lora", "lora_B of one layer is missing", _drop(_B)),
    Damage(
        "damaged-no-head",
        "peft-lora",
        "the head, which modules_to_save names, is missing",
        _drop("classifier"),
    ),
    Damage(
        "damaged-no-layer",
        "peft-lora",
        "target_modules names layers for which there are no tensors",
        _config(target_modules=["key", "query", "value"]),
    ),
    Damage(
        "damaged-more-layers",
        "peft-lora",
        "there are tensors for layers that target_modules does not name",
        _config(target_modules=["query"]),
    ),
    Damage(
        "damaged-other-layer",
        "peft-lora",
        "there are tensors for a layer that the base has not",
        _rename(lambda name: name.replace("layer.1.", "layer.7.")),
    ),
    Damage(
        "damaged-prefix",
        "peft-lora",
        "names do not begin with base_model.model.",
        _rename(lambda name: name.removeprefix("base_model.model.")),
    ),
    Damage(
        "damaged-adapter-name",
        "peft-lora",
        "an adapter's name is left in the names of the tensors",
        _rename(lambda name: name.replace(".weight", ".default.weight")),
    ),
    Damage(
        "damaged-turned",
        "peft-lora",
        "lora_A of one layer is transposed",
        _tensors(lambda tensors: tensors | {_A: tensors[_A].T}),
    ),
    Damage("damaged-rank", "peft-lora", "r is 4 and the tensors have the rank 3", _config(r=4)),
    Damage(
        "damaged-changed-base",
        "peft-lora",
        "init_lora_weights is 'pissa', which has changed the base too, and the changed base is not in the folder",
        _config(init_lora_weights="pissa"),
    ),
    Damage("damaged-other-base", "peft-lora", "the base has other widths", lambda folder: None, base="bert-10"),
    Damage(
        "damaged-no-magnitude",
        "peft-dora",
        "use_dora is true and a layer has no magnitudes",
        _drop(f"{_QUERY}.lora_magnitude_vector"),
    ),
    Damage(
        "damaged-turned-ia3",
        "peft-ia3",
        "the factors of the outputs of a layer lie as those of its inputs",
        _tensors(lambda tensors: {name: one.T if "key" in name else one for name, one in tensors.items()}),
    ),
    Damage(
        "damaged-prompt",
        "peft-prefix",
        "the prompt has another number of tokens than the configuration says",
        _config(num_virtual_tokens=5),
    ),
    Damage(
        "damaged-token",
        "peft-tokens",
        "token_indices names a token that the vocabulary has not",
        _config(token_indices=[9, 2, 99]),
    ),
]
