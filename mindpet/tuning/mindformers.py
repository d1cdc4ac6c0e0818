"""What comes from MindFormers: its dense layer, and the block `pet_config` of its YAML files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspore import nn
from pydantic import ValidationError

from mindpet.storage.reader import read_yaml
from mindpet.tuning.config import LoraConfig, PeftConfig, PrefixConfig, PTuning2Config
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["is_mindformers_linear", "read_mindformers_config"]

_LINEAR = ("in_channels", "out_channels", "weight", "has_bias", "matmul", "transpose_b", "expert_num", "dtype")
_LINEAR_ACTIVATION = ("activation_flag", "activation")

# What MindFormers takes for a key that is left out, by pet_type.
_DEFAULTS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "lora": (
        LoraConfig,
        {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.01, "target_modules": ".*dense*|.*linear*"},
    ),
    "ptuning2": (
        PTuning2Config,
        {"pre_seq_len": 128, "prefix_projection": False, "projection_dim": 128, "dropout_prob": 0.01},
    ),
    "prefixtuning": (PrefixConfig, {"prefix_token_num": 128, "mid_dim": 512, "dropout_rate": 0.1}),
}
# Keys that may stand there with the values that say what attaching does in any case.
_FIXED: dict[str, tuple[Any, ...]] = {
    "lora_b_init": ("zeros", "zero"),
    "param_init_type": ("float32",),
    "freeze_include": (["*"], None),
    "freeze_exclude": (["*lora*"], None),
    "exclude_layers": ([], None),
}
_ADVICE = {
    "param_init_type": "the parameters that a method adds are float32",
    "compute_dtype": "give it to get_peft_model instead",
    "freeze_include": "attaching freezes the network",
    "freeze_exclude": "name what is trained as well in modules_to_save of the configuration",
    "exclude_layers": "write target_modules so that it leaves them out",
}


def is_mindformers_linear(cell: nn.Cell) -> bool:
    """Tell by class name and attributes whether a cell is MindFormers' `Linear`; MindFormers is not imported."""
    named = any(kind.__name__ == "Linear" for kind in type(cell).__mro__)
    return named and all(hasattr(cell, name) for name in (*_LINEAR, *_LINEAR_ACTIVATION))


def read_mindformers_config(path: str | os.PathLike[str]) -> PeftConfig:
    """Read the block `pet_config` of a MindFormers YAML file, wherever in the file it stands.

    pet_type is 'lora', 'ptuning2' or 'prefixtuning'. What is left out has MindFormers' own default, which is not always
    this package's (`lora_alpha` 16, `lora_dropout` 0.01). MindFormers' target_modules is a regular expression for the
    begin of a layer's name; it becomes one for the layer's whole path that matches the same layers.

    Args:
        path: The YAML file.

    Returns:
        The configuration, for `get_peft_model`.

    Raises:
        InputError: The file cannot be read, holds no block or several, names another method, or asks for something
            that attaching would not do.
    """
    blocks = list(_find_blocks(read_yaml(Path(path))))
    if len(blocks) != 1:
        raise InputError(f"{path} holds {len(blocks) or 'no'} blocks pet_config; give a file with one")
    try:
        return _to_config(blocks[0])
    except InputError as error:
        raise InputError(f"{path}, pet_config: {error}") from error


def _find_blocks(content: Any) -> Iterator[Any]:
    """Yield the innermost values of each key pet_config."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            inner = list(_find_blocks(value))
            if key == "pet_config" and not inner:
                yield value
            yield from inner
    elif isinstance(content, list):
        for item in content:
            yield from _find_blocks(item)


def _to_config(block: Any) -> PeftConfig:
    if not isinstance(block, Mapping) or not all(isinstance(key, str) for key in block):
        raise InputError(f"it is {block!r}; give a mapping with pet_type and the method's values")
    given = dict(block)
    pet_type = given.pop("pet_type", None)
    if not isinstance(pet_type, str) or pet_type.lower() not in _DEFAULTS:
        raise InputError(f"pet_type is {pet_type!r}; give one of {', '.join(_DEFAULTS)}")
    kind, defaults = _DEFAULTS[pet_type.lower()]
    known = (*defaults, *(("lora_a_init", "compute_dtype", *_FIXED) if kind is LoraConfig else ()))
    for key in given:
        if key not in known:
            near = nearest_names(key, known) or known
            raise InputError(f"{key} is no key of {pet_type}; known are {', '.join(near)}")
    for key in [key for key in given if key in _FIXED or key in _ADVICE]:
        value = given.pop(key)
        if value not in _FIXED.get(key, (None,)):
            raise InputError(f"{key} is {value!r}; leave it out: {_ADVICE.get(key, 'it starts at zeros')}")
    values = defaults | {key: value for key, value in given.items() if value is not None}
    if kind is LoraConfig and isinstance(values["target_modules"], str):
        values["target_modules"] = _whole_path(values["target_modules"])
    return _validated(kind, values)


def _whole_path(begin: str) -> str:
    """Return the regular expression of a path whose last name begins with what `begin` matches."""
    try:
        re.compile(begin)
    except re.error as error:
        raise InputError(f"target_modules: {begin!r} is no regular expression: {error}; correct it") from error
    return rf"(?:.*\.)?(?:{begin})[^.]*"


def _validated(kind: type[PeftConfig], values: Mapping[str, Any]) -> PeftConfig:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the block"
        raise InputError(f"{key} is {first['input']!r}: {first['msg']}; correct it") from error
