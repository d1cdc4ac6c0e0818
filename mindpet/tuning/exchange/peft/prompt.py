"""Prefix tuning and P-Tuning v2 in PEFT's folders: the prompt, and beside it, in a file of ours, what makes it.

PEFT keeps the keys and values that come out, for each token those of all layers in a row, and loses the projection that
made them. Training goes on from `mindpet_projection.safetensors` in the same folder, which PEFT does not look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mindpet.storage.reader import read_tensor_file
from mindpet.storage.text import parse_json
from mindpet.tuning.config import PeftConfig, PTuning2Config
from mindpet.tuning.exchange.adapter import dump_methods, parse_methods
from mindpet.tuning.exchange.folder import PROJECTION_FILE, host_tensors
from mindpet.tuning.exchange.peft.frame import Source, widen
from mindpet.tuning.exchange.record import explain
from mindpet.tuning.exchange.values import HostTensor, digest
from mindpet.tuning.prefixes import ENCODER_NAME, takes_prefix
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK

__all__ = [
    "OWN_PREFIX",
    "PEFT_TYPE",
    "PROMPT",
    "describe_projection",
    "make_prompt",
    "read_prompt",
    "write_config",
]

PEFT_TYPE = "PREFIX_TUNING"
OWN_PREFIX = "base_model."  # before the names of the network's own tensors, unlike with other methods
PROMPT = "prompt_embeddings"

_METADATA_KEY = "mindpet_projection"
_TABLE = f"{ENCODER_NAME}.{DELTA_MARK}ptuning2_embedding.embedding_table"
_IDLE = ("encoder_hidden_size", "init_weights", "num_transformer_submodules", "prefix_projection")
_SIZES = ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")


class _Projection(BaseModel):
    """What the metadata of the projection's file say.

    Attributes:
        methods: The configurations, one block a method.
        prompt: The SHA-256 of the prompt that the projection makes.
        tensors: The SHA-256 of each tensor, by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[JsonValue]
    prompt: str
    tensors: dict[str, str]


def make_prompt(config: PeftConfig, parts: Mapping[str, Mapping[str, HostTensor]]) -> HostTensor:
    """Return what PEFT keeps: (tokens, layers * 2 * heads * head_dim), for each layer the keys, then the values.

    Args:
        config: The method's.
        parts: For each attention, in the network's order, what makes its prefix, by the names in its cell.
    """
    if isinstance(config, PTuning2Config):
        held = {
            name.rpartition(f"{DELTA_MARK}ptuning2_")[2]: one.values for name, one in next(iter(parts.values())).items()
        }
        table = held["embedding.embedding_table"]
        prompt = _project(table, held, "dense_in", "dense_out") if config.prefix_projection else table
    else:
        prompt = np.concatenate([_make_layer(held) for held in parts.values()], 1)
    return HostTensor(np.ascontiguousarray(prompt, np.float32), "float32")


def _make_layer(held: Mapping[str, HostTensor]) -> np.ndarray:
    """Return the keys and values of one attention from its own layer, (tokens, 2 * heads * head_dim)."""
    short = {name.rpartition(f"{DELTA_MARK}prefixtuning_")[2]: one.values for name, one in held.items()}
    return _project(short["wte.embedding_table"], short, "control_trans.0", "control_trans.2")


def _project(table: np.ndarray, held: Mapping[str, np.ndarray], first: str, second: str) -> np.ndarray:
    """Return tanh(table W_1^T + b_1) W_2^T + b_2, rounded once."""
    wide = {name: values.astype(np.float64) for name, values in held.items()}
    hidden = np.tanh(table.astype(np.float64) @ wide[f"{first}.weight"].T + wide[f"{first}.bias"])
    return (hidden @ wide[f"{second}.weight"].T + wide[f"{second}.bias"]).astype(np.float32)


def write_config(config: PeftConfig, attentions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what PEFT's configuration says of the method; what is written is a plain table."""
    shape = next(iter(attentions.values()))
    width = shape.num_heads * shape.head_dim
    sizes = (config.size, len(attentions), shape.num_heads, width)
    return dict(zip(_SIZES, sizes, strict=True)) | {
        "encoder_hidden_size": width,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }


def describe_projection(config: PeftConfig, tensors: Mapping[str, HostTensor], prompt: HostTensor) -> dict[str, str]:
    """Return the metadata of the file with what makes the prompt, from which training can go on.

    Args:
        config: The method's.
        tensors: The method's own, by name.
        prompt: What they make.
    """
    content = _Projection(
        methods=dump_methods([config]),
        prompt=digest(prompt),
        tensors={name: digest(tensor) for name, tensor in tensors.items()},
    )
    return {_METADATA_KEY: json.dumps(content.model_dump(mode="json"))}


def read_prompt(source: Source, saved: tuple[str, ...]) -> tuple[PeftConfig, dict[str, HostTensor], set[str]]:
    """Return the configuration, the method's tensors by our names, and the names in the file that are used up.

    Raises:
        InputError: The prompt is lost or does not fit configuration or network, or the projection is another's.
    """
    source.check_keys((*_SIZES, *_IDLE), {"num_transformer_submodules": (None, 1)})
    sizes: dict[str, Any] = {name: source.config.get(name) for name in _SIZES}
    if wrong := [name for name, size in sizes.items() if type(size) is not int or size <= 0]:
        source.refuse(f"{wrong[0]} is {sizes[wrong[0]]!r}, and a whole number above 0 is accepted", "correct it")
    _check_attentions(source, sizes)
    if PROMPT not in source.tensors:
        source.refuse_tensors([f"{PROMPT} is missing"])
    prompt = widen(source.tensors[PROMPT])
    shape = (sizes["num_virtual_tokens"], sizes["num_layers"] * 2 * sizes["token_dim"])
    if prompt.shape != shape:
        source.refuse_tensors([f"{PROMPT} is {list(prompt.shape)}, and {source.path.name} says {list(shape)}"])
    if (source.file.with_name(PROJECTION_FILE)).exists():
        return *_read_projection(source.file.with_name(PROJECTION_FILE), prompt), {PROMPT}
    config = source.make_config(PTuning2Config, num_virtual_tokens=sizes["num_virtual_tokens"], modules_to_save=saved)
    return config, {_TABLE: prompt}, {PROMPT}


def _check_attentions(source: Source, sizes: Mapping[str, Any]) -> None:
    """Refuse a prompt for other attentions than the network's."""
    attentions: dict[str, Any] = {path: cell for path, cell in source.network.cells.items() if takes_prefix(cell)}
    if not attentions:
        source.refuse(
            f"no attention of {type(source.network.root).__name__} takes a prefix", "load it into another network"
        )
    shapes = {(cell.num_heads, cell.num_heads * cell.head_dim) for cell in attentions.values()}
    given = {(sizes["num_attention_heads"], sizes["token_dim"])}
    if shapes != given or len(attentions) != sizes["num_layers"]:
        source.refuse(
            f"it is for {sizes['num_layers']} layers with (heads, width) {sorted(given)}, and the network has"
            f" {len(attentions)} with {sorted(shapes)}",
            "load it into the model that it was trained on",
        )


def _read_projection(file: Path, prompt: HostTensor) -> tuple[PeftConfig, dict[str, HostTensor]]:
    found = read_tensor_file(file)
    try:
        content = _Projection.model_validate(parse_json(found.metadata.get(_METADATA_KEY, "null")))
    except (ValidationError, ValueError, RecursionError) as error:
        cause = explain(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{file} has unusable metadata ({cause}); fetch it again, or remove it.") from error
    tensors = host_tensors(found)
    if {name: digest(tensor) for name, tensor in tensors.items()} != content.tensors:
        raise InputError(f"{file} differs from its own checksums; fetch it again, or remove it.")
    if content.prompt != digest(prompt):
        raise InputError(
            f"{file} does not make the {PROMPT} beside it, which have been changed since; fetch both again, or remove"
            " this file to load the prompt alone."
        )
    (config,) = parse_methods(file, content.methods)
    return config, tensors
