"""Changing an adapter's folder in ways that no reader may overlook."""

import hashlib
import json

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def read_tensors(folder):
    with safe_open(folder / TENSORS, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_config(folder):
    return json.loads((folder / CONFIG).read_text())


def write_config(folder, config):
    (folder / CONFIG).write_text(json.dumps(config))


def write_tensors(folder, tensors, metadata):
    """Write the file of tensors, and its SHA-256 into the configuration, as one who knows the form would."""
    save_file(tensors, folder / TENSORS, metadata)
    bind(folder)


def bind(folder):
    digest = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    write_config(folder, read_config(folder) | {"weights_sha256": digest})


def edit_record(folder, edit):
    """Change the record in the metadata with `edit`, and all checksums with it."""
    tensors, metadata = read_tensors(folder)
    record = json.loads(metadata["mindpet"])["record"]
    edit(record)
    config = read_config(folder) | {"methods": record["methods"]}
    write_config(folder, config)
    write_tensors(folder, tensors, {"mindpet": sign(record)})


def sign(record):
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "record": record})


def edit_tensors(folder, edit, is_signed=True):
    """Change the tensors with `edit`, and their checksums with them where `is_signed`."""
    tensors, metadata = read_tensors(folder)
    edit(tensors)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if is_signed:
        record = json.loads(metadata["mindpet"])["record"]
        record["tensors"] = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in tensors.items()}
        metadata = {"mindpet": sign(record)}
    write_tensors(folder, tensors, metadata)
