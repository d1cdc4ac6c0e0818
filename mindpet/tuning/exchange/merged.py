"""Writing base and adapter together as one model that transformers loads, without an adapter's library."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import nn
from safetensors import safe_open

from mindpet.graph.load import check_network
from mindpet.storage.atomic import write_json
from mindpet.storage.reader import read_json, read_sharded_safetensors, require_folder
from mindpet.tuning.base_weights import BaseWeight
from mindpet.tuning.exchange.folder import staged_folder, write_tensors
from mindpet.tuning.exchange.pooling import warn_of_pooling
from mindpet.tuning.exchange.values import HostTensor, read
from mindpet.tuning.merge import merge, unmerge
from mindpet.tuning.rounding import FLOATS, round_to
from mindpet.tuning.state import PeftState, require_state
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, STATE_MARK, file_name

__all__ = ["TO_MERGE", "merged_state", "write_merged_model"]

# What messages advise for an adapter that another library does not take.
TO_MERGE = (
    "write base and adapter as one model with `mindpet merge`, or in Python with "
    "mindpet.tuning.exchange.merged.write_merged_model"
)

_CONFIG_FILE = "config.json"
_TENSOR_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_COPIED = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}  # tokenizer, chat template, code of the model
_CLASSIFIER = "ForSequenceClassification"  # ends the names of classes whose number of classes config.json tells
_OLD_LEAVES = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}


def merged_state(net: nn.Cell) -> dict[str, np.ndarray]:
    """Return all values of a network with its adapter merged in, by their names in Hugging Face files.

    The network is merged, read, and unmerged again, bit for bit; one that is merged already stays so. A dense layer's
    weight is (outputs, inputs), also where the files of its architecture hold it transposed.

    Args:
        net: The network that was given to `get_peft_model`.

    Raises:
        InputError: Nothing is attached, or it cannot be merged (`mindpet.merge` says why).
    """
    state = require_state(net)
    if state.merged is not None:
        return {name: tensor.values for name, (tensor, _) in _read_state(state).items()}
    merge(net)
    try:
        return {name: tensor.values for name, (tensor, _) in _read_state(state).items()}
    finally:
        unmerge(net)


def write_merged_model(
    net: nn.Cell,
    source_folder: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a network with its adapter merged in as a model's folder, as the one that it was loaded from is.

    What the adapter has changed is written in the dtype of the network's parameters, so that nothing is rounded; the
    rest, configuration and tokenizer are the source's. The folder appears whole or not at all. The network is merged,
    read, and unmerged again; one that is merged already stays so.

    Args:
        net: The network that was given to `get_peft_model`.
        source_folder: The Hugging Face folder that the network was loaded from.
        folder: Where to write. The folders above it are made.
        overwrite: Whether a model's folder that stands there is replaced, once the new one is complete.

    Raises:
        TypeError: `net` is no Cell.
        InputError: Nothing is attached, it cannot be merged, the source is not the network's, or the folder cannot be
            written. Nothing was written then.
    """
    check_network(net)
    state = require_state(net)
    source, target = require_folder(Path(source_folder)), Path(folder)
    _check_place(target, overwrite)
    config = _update_config(net, read_json(source / _CONFIG_FILE))
    was_merged = state.merged is not None
    if not was_merged:
        merge(net)
    try:
        tensors = _join(_read_state(state), _read_source(source), source)
    finally:
        if not was_merged:
            unmerge(net)
    warn_of_pooling(net)
    with staged_folder(target, overwrite, _check_place) as staged:
        _copy_files(source, staged)
        write_json(staged / _CONFIG_FILE, config)
        write_tensors(staged / _TENSOR_FILE, tensors, {"format": "pt"})


def _read_state(state: PeftState) -> dict[str, tuple[HostTensor, BaseWeight]]:
    """Return the values of a merged network by their names in Hugging Face files, with what they were before."""
    merged = {id(weight.parameter): weight for weight in state.merged.weights}
    found = {}
    for name, parameter in state.parameters.items():
        if DELTA_MARK in name or STATE_MARK in name:
            continue
        tensor = read(parameter)
        base = merged.get(id(parameter))
        if base is None:
            values = state.marked.get(name, tensor.values)
            base = BaseWeight.of(parameter, round_to(values, tensor.dtype), keep=True)
        found[file_name(name)] = tensor, base
    return found


def _read_source(folder: Path) -> dict[str, HostTensor]:
    """Return the tensors of a model's folder, with the dtypes that they have there."""
    tensors = read_sharded_safetensors(folder)
    files = [folder / _TENSOR_FILE]
    if not files[0].exists():
        files = [folder / name for name in sorted(set(read_json(folder / _INDEX_FILE)["weight_map"].values()))]
    halves = set()
    for file in files:
        with safe_open(file, framework="numpy") as opened:
            halves |= {name for name in opened.keys() if opened.get_slice(name).get_dtype() == "BF16"}  # noqa: SIM118
    return {
        name: HostTensor(values, "bfloat16" if name in halves else values.dtype.name)
        for name, values in tensors.items()
    }


def _join(
    state: Mapping[str, tuple[HostTensor, BaseWeight]], source: Mapping[str, HostTensor], folder: Path
) -> dict[str, HostTensor]:
    """Return the source's tensors with what the adapter has changed, and what only the network has.

    Raises:
        InputError: The network was not loaded from the source.
    """
    prefix = _find_prefix(state, source)
    joined, problems = {}, []
    for name, tensor in source.items():
        here = prefix + _modernise(name)
        if here not in state:
            joined[here] = tensor
            continue
        value, base = state[here]
        stored = _find_layout(tensor, base)
        if stored is None:
            problems.append(here)
            continue
        is_changed = not np.array_equal(round_to(stored, value.dtype), round_to(value.values, value.dtype))
        as_stored = value.values if stored is tensor.values else value.values.T
        joined[here] = HostTensor(as_stored, value.dtype) if is_changed else tensor
    new = {name: value for name, (value, _) in state.items() if name not in joined and name not in problems}
    problems += [name for name in new if (prefix and name.startswith(prefix)) or len(new) > len(joined)]
    if problems:
        raise InputError(
            f"{folder} is not the model that the network was loaded from: {problems[0]} and {len(problems) - 1} other"
            " tensors differ or are missing there; give the folder from which this very network was loaded"
        )
    return joined | new


def _find_prefix(state: Iterable[str], source: Mapping[str, HostTensor]) -> str:
    """Return what the source's names lack: a model without a head names its tensors without the model's own name."""
    names = set(state)
    prefixes = ["", *(f"{one}." for one in dict.fromkeys(name.partition(".")[0] for name in names))]
    return max(prefixes, key=lambda prefix: sum(prefix + _modernise(name) in names for name in source))


def _modernise(name: str) -> str:
    """Return the name that today's files have for a tensor of a file of 2018."""
    old = next((one for one in _OLD_LEAVES if name.endswith(one)), None)
    return name if old is None else name.removesuffix(old) + _OLD_LEAVES[old]


def _find_layout(tensor: HostTensor, base: BaseWeight) -> np.ndarray | None:
    """Return a tensor of the source, transposed where the network's base was, or None if it is another one."""
    layouts = [tensor.values, tensor.values.T] if tensor.values.ndim == 2 else [tensor.values]
    for values in layouts:
        if base.dtype not in FLOATS or values.shape != base.shape:
            continue
        rounded = np.ascontiguousarray(round_to(values, base.dtype))
        if BaseWeight.of(base.parameter, rounded, keep=False).sha256 == base.sha256:
            return values
    return None


def _update_config(net: nn.Cell, config: Any) -> dict[str, Any]:
    """Return the source's configuration with the class and the number of classes that the network has."""
    if not isinstance(config, dict):
        raise InputError(f"{_CONFIG_FILE} holds a {type(config).__name__}, expected is a JSON object; fetch it again.")
    name = type(net).__name__
    if not name.endswith(_CLASSIFIER):
        return config
    classes = net.config.num_labels
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) != classes:
        labels = {str(number): f"LABEL_{number}" for number in range(classes)}
    changes = {
        "architectures": [name],
        "id2label": labels,
        "label2id": {label: int(key) for key, label in labels.items()},
    }
    return {key: value for key, value in config.items() if key != "num_labels"} | changes


def _check_place(folder: Path, overwrite: bool) -> None:
    """Refuse a place where no model's folder can be made without losing something."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder} is a file or a symbolic link; name another folder.")
    is_model = (folder / _CONFIG_FILE).is_file() and (folder / _TENSOR_FILE).is_file()
    if folder.exists() and any(folder.iterdir()) and not (overwrite and is_model):
        advice = "pass overwrite=True to replace it" if is_model else "name another folder"
        raise InputError(f"{folder} holds {'a model' if is_model else 'other files'} already; {advice}.")


def _copy_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        is_index = file.name.endswith(".index.json")
        if file.is_file() and (file.suffix in _COPIED or file.name.startswith(("LICENSE", "NOTICE"))) and not is_index:
            shutil.copyfile(file, target / file.name)
