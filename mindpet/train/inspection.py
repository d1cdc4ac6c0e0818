"""What an adapter holds, read from its files alone. MindSpore is imported for checkpoints only, which are its own."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize

from mindpet.storage.reader import read_bytes, read_json, read_tensor_file, read_text, require_file, require_folder
from mindpet.train.settings import SETTINGS_FILE
from mindpet.tuning.exchange.record import METADATA_KEY, Record, parse_record
from mindpet.utils.exceptions import InputError

__all__ = ["Contents", "TensorFacts", "inspect_adapter"]

_CONFIG, _TENSORS, _CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_MINDFORMERS_CONFIG = "mindformers_adapter_config.json"


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as it stands in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Contents:
    """What an adapter holds.

    Attributes:
        path: The file or folder.
        kind: 'mindpet', 'peft', 'mindformers', 'ckpt', or 'tensors' for a file that holds nothing else.
        tensors: The tensors.
        version: Of the library that wrote it.
        base: What it was trained on, in its author's words.
        methods: The configurations, one block a method.
        data: What it was trained with, as its card says.
        metrics: What it reached, as its card says.
        record: What proves that it was applied; None where the file has none.
        checksums: How many checksums come with it.
        problems: What is wrong with it, such as a checksum that does not hold.
    """

    path: Path
    kind: str
    tensors: tuple[TensorFacts, ...]
    version: str | None = None
    base: str | None = None
    methods: tuple[Mapping[str, Any], ...] = ()
    data: str | Mapping[str, Any] | None = None
    metrics: str | Mapping[str, Any] | None = None
    record: Record | None = None
    checksums: int = 0
    problems: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def probe(self) -> str | None:
        """What its probe runs; None where there is no probe."""
        if self.record is None:
            return None
        return f"{len(self.record.cells)} cells{' and the whole network' if self.record.network else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything in a form that JSON has."""
        names = ("kind", "version", "base", "data", "metrics", "probe", "parameters", "checksums")
        tensors = [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype} for one in self.tensors]
        return {
            "path": str(self.path),
            **{name: getattr(self, name) for name in names},
            "problems": list(self.problems),
            "methods": list(self.methods),
            "tensors": tensors,
        }


def inspect_adapter(path: str | Path) -> Contents:
    """Read what an adapter holds, and check the checksums that come with it.

    Args:
        path: A folder of `save_adapter`, of Hugging Face PEFT or of MindFormers; a run folder; a `.safetensors` or a
            `.ckpt` file.

    Raises:
        InputError: It is no adapter, or so damaged that it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _inspect_checkpoint(require_file(path)) if path.suffix == ".ckpt" else _inspect_file(path)
    folder = require_folder(path)
    if (folder / SETTINGS_FILE).is_file():
        folder = require_folder(folder / "adapter")
    if (folder / _CONFIG).is_file():
        return _inspect_folder(folder)
    if (folder / _MINDFORMERS_CONFIG).is_file():
        return _inspect_mindformers(folder)
    raise InputError(f"{folder} holds neither {_CONFIG} nor {_MINDFORMERS_CONFIG}; name the folder of an adapter.")


def _inspect_file(file: Path) -> Contents:
    """Read a safetensors file with our record, or with none."""
    found = read_tensor_file(file)
    tensors = tuple(TensorFacts(name, values.shape, found.dtypes[name]) for name, values in found.tensors.items())
    problems = tuple(
        f"{name} holds NaN or infinite numbers" for name, values in found.tensors.items() if not _is_finite(values)
    )
    if METADATA_KEY not in found.metadata:
        return Contents(file, "tensors", tensors, problems=problems)
    record = parse_record(file, found.metadata[METADATA_KEY])
    sums = {name: hashlib.sha256(tensor["data"]).hexdigest() for name, tensor in deserialize(read_bytes(file))}
    problems += tuple(
        f"{name} {_describe(name, sums, record)}"
        for name in sorted(sums.keys() | record.tensors.keys())
        if sums.get(name) != record.tensors.get(name)
    )
    methods = tuple(block for block in record.methods if isinstance(block, dict))
    count = len(record.tensors) + 1  # the record has one of its own
    return Contents(file, "mindpet", tensors, methods=methods, record=record, checksums=count, problems=problems)


def _inspect_folder(folder: Path) -> Contents:
    """Read a folder with an `adapter_config.json`, ours or PEFT's."""
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{folder / _CONFIG} is no JSON object; fetch the file again.")
    file = require_file(folder / _TENSORS)
    found = replace(_inspect_file(file), path=folder, base=config.get("base_model_name_or_path"))
    if "peft_type" in config:
        told = {key: value for key, value in config.items() if value not in (None, False, [], {}, "")}
        block = {"method": config["peft_type"], **told}
        return replace(found, kind="peft", version=config.get("peft_version"), methods=(block,))
    problems = list(found.problems)
    if hashlib.sha256(read_bytes(file)).hexdigest() != config.get("weights_sha256"):
        problems.append(f"{_TENSORS} differs from its checksum in {_CONFIG}")
    if list(found.methods) != config.get("methods"):
        problems.append(f"{_CONFIG} has other methods than {_TENSORS} was saved with")
    card = _read_card(folder / _CARD)
    return replace(
        found,
        version=config.get("mindpet_version"),
        data=card.get("Data"),
        metrics=card.get("Metrics"),
        checksums=found.checksums + 1,
        problems=tuple(problems),
    )


def _inspect_mindformers(folder: Path) -> Contents:
    from mindpet.tuning.exchange.adapter import dump_methods
    from mindpet.tuning.exchange.legacy import read_mindformers

    adapter = read_mindformers(folder)
    tensors = tuple(TensorFacts(name, one.shape, one.dtype) for name, one in adapter.tensors.items())
    return Contents(folder, "mindformers", tensors, methods=tuple(dump_methods(adapter.configs or ())))


def _inspect_checkpoint(file: Path) -> Contents:
    """Read a checkpoint of MindSpore, whose checksums may stand beside it."""
    from mindpet.graph.checkpoint_names import checksum_path
    from mindpet.tuning.exchange.legacy import read_ckpt

    adapter = read_ckpt(file)
    tensors = tuple(TensorFacts(name, one.shape, one.dtype) for name, one in adapter.tensors.items())
    has_sums = checksum_path(file).is_file()  # `read_ckpt` refuses a file that differs from them
    return Contents(file, "ckpt", tensors, checksums=len(tensors) + 1 if has_sums else 0)


def _read_card(card: Path) -> dict[str, Any]:
    """Return the sections of a model card by their titles: a text, or what its table has by name."""
    if not card.is_file():
        return {}
    parts = re.split(r"^## (.+)$", read_text(card), flags=re.MULTILINE)[1:]
    sections = {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}
    return {title: _read_rows(text) or text for title, text in sections.items() if text != "Not given."}


def _read_rows(text: str) -> dict[str, Any]:
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", text, flags=re.MULTILINE)
    return {name: _read_value(value) for name, value in rows}


def _read_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _describe(name: str, sums: Mapping[str, str], record: Record) -> str:
    if name not in sums:
        return "is missing"
    return "differs from its checksum" if name in record.tensors else "is not in the record"
