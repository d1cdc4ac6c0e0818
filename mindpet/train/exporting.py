"""From an opened run to what other libraries read: a whole model, or an adapter."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from mindspore import Tensor

from mindpet.storage.atomic import make_folder, place_folder, write_json
from mindpet.storage.reader import read_json
from mindpet.train.inspection import inspect_adapter
from mindpet.train.serve import Notify, Served, reread
from mindpet.tuning.exchange.export import export_adapter
from mindpet.tuning.exchange.merged import write_merged_model
from mindpet.tuning.exchange.traceless import quiet
from mindpet.tuning.merge import merge
from mindpet.tuning.merge_report import MergeReport
from mindpet.utils.exceptions import InputError

__all__ = ["TOLERANCES", "Verification", "check_model_folder", "export", "write_model"]

# The largest difference of a logit from that of base plus adapter, divided by the largest logit: in each layer both
# round once more. float32's is what models here may differ from transformers' by.
TOLERANCES = {"float32": 1e-4, "float16": 2.0**-5, "bfloat16": 2.0**-3}

_ENDINGS = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".safetensors", "LICENSE", "NOTICE", "LICENSE.md")
_SEEN = {"mean": "the mean of the tokens", "cls": "the first token"}
_ROWS, _LENGTH = 4, 32  # of the probe


@dataclass(frozen=True)
class Verification:
    """How the logits of a written model differ from those of base plus adapter.

    Attributes:
        difference: The largest difference, divided by the largest logit.
        tolerance: What it may be.
    """

    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


def write_model(
    served: Served, folder: Path, *, verify: bool, overwrite: bool, notify: Notify
) -> tuple[MergeReport, Verification | None]:
    """Fold what was trained into the base weights, and write a Hugging Face folder with configuration and tokenizer.

    Args:
        served: The network. It is merged afterwards.
        folder: Where to write; it appears whole or not at all.
        verify: Whether the folder is read again and its logits are compared, before it gets its name.
        overwrite: Whether an earlier model there is replaced.
        notify: Called with what is to be known of the folder.

    Returns:
        What merging did; and how the logits differ, None without `verify`. Where they differ too much, nothing is
        written.

    Raises:
        InputError: The method cannot be merged, or the folder cannot be written or replaced.
    """
    check_model_folder(folder, overwrite)
    expected = _probe(served) if verify else None
    report = merge(served.network, keep_base=False)
    make_folder(folder.parent)
    staged = folder.with_name(f".{folder.name}-staging-{uuid.uuid4().hex}")
    try:
        with _telling(notify):
            write_merged_model(served.network, served.source, staged)
        _name_labels(staged, served.label_names)
        verification = None if expected is None else _compare(served, staged, expected)
        if verification is None or verification.passed:
            place_folder(staged, folder, overwrite)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return report, verification


def export(
    served: Served,
    folder: Path,
    form: Literal["peft", "vllm", "adapters", "hf"],
    *,
    overwrite: bool,
    notify: Notify,
    max_lora_rank: int | None = None,
) -> None:
    """Write a run in the form of another library.

    Args:
        served: The network. After 'hf' it is merged.
        folder: Where to write; it appears whole or not at all.
        form: 'hf' for a model's folder with which transformers gives the same logits; 'peft', 'vllm' or 'adapters' for
            an adapter, as `mindpet.export_adapter` writes them.
        overwrite: Whether what an earlier call has written there is replaced.
        notify: Called with what is to be known of the folder.
        max_lora_rank: With 'vllm', the largest rank that the server is started with; None for vLLM's own, 16.

    Raises:
        InputError: The library cannot compute what this network does, or the folder cannot be written or replaced.
    """
    if form == "hf":
        pooling = "pooler" if served.is_language else served.settings.pooling
        if pooling != "pooler":
            raise InputError(
                f"{served.path}: its head sees {_SEEN[pooling]}, and that of a BERT in transformers sees the pooler, "
                "so that the logits would differ; train with --pooling pooler, or use `mindpet merge` and load the "
                "folder with MindPet"
            )
        write_model(served, folder, verify=False, overwrite=overwrite, notify=notify)
        return
    if served.report is None:
        raise InputError(f"{served.path}: everything was trained, so there is no adapter; choose --format hf")
    base = inspect_adapter(served.path).base
    with _telling(notify):
        export_adapter(served.network, folder, form, base=base, overwrite=overwrite, max_lora_rank=max_lora_rank)


def check_model_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a place where no model can be written without losing something.

    Raises:
        InputError: Something stands there that is not to be replaced.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is no folder; choose another with --out")
    names = sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []
    if not names:
        return
    foreign = [name for name in names if not name.endswith(_ENDINGS)]
    if foreign or "config.json" not in names:
        what = f"it holds {foreign[0]!r}, which no model's folder has here" if foreign else "it holds no model"
        raise InputError(f"{folder}: not replaced, as {what}; choose another with --out")
    if not overwrite:
        raise InputError(f"{folder}: holds a model already; choose another with --out or pass --overwrite")


@contextmanager
def _telling(notify: Notify) -> Iterator[None]:
    """Hand warnings on as sentences."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notify(str(warning.message))


def _name_labels(folder: Path, names: tuple[str, ...] | None) -> None:
    """Write the labels' names into the configuration, where transformers looks for them."""
    if names:
        config = read_json(folder / "config.json")
        labels = {
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }
        write_json(folder / "config.json", config | labels)


def _compare(served: Served, folder: Path, expected: np.ndarray) -> Verification:
    found = _probe(reread(served, folder))
    largest = float(np.abs(expected).max()) or 1.0
    return Verification(float(np.abs(found - expected).max()) / largest, TOLERANCES[served.settings.dtype])


def _probe(served: Served) -> np.ndarray:
    """Return the logits for rows of seeded tokens, one of them shorter than the others."""
    generator = np.random.RandomState(0)
    shape = _ROWS, min(_LENGTH, served.longest)
    input_ids = generator.randint(0, served.network.config.vocab_size, shape).astype(np.int32)
    attention_mask = np.ones(shape, np.int32)
    attention_mask[-1, -(shape[1] // 3) :] = 0
    inputs = [input_ids, attention_mask] + ([] if served.is_language else [np.zeros(shape, np.int32)])
    with quiet(served.network):  # in PyNative mode: a graph for one call takes longer
        logits = served.network(*map(Tensor, inputs)).asnumpy()
    return logits[attention_mask != 0] if served.is_language else logits
