"""LoRA in PEFT's folders: plain, rsLoRA and DoRA, on dense layers, embeddings and convolutions; PiSSA as plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import nn

from mindpet.tuning.config import LoraConfig
from mindpet.tuning.exchange.peft.frame import Family, Leaf, Source
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.layers import view_layer
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK

__all__ = ["FAMILY", "as_plain_lora", "find_rank"]

_A, _B = f"{DELTA_MARK}lora_a", f"{DELTA_MARK}lora_b"
_FIRST_A, _FIRST_B = f"{DELTA_MARK}lora_first_a", f"{DELTA_MARK}lora_first_b"
_MAGNITUDE = f"{DELTA_MARK}lora_magnitude"

# The starts that leave the base as it is. The others have changed it, in a way that no file tells.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")


def find_rank(config: LoraConfig, path: str) -> int:
    """Return the rank at a layer; the first key of the pattern that fits counts."""
    return next((rank for key, rank in config.rank_pattern.items() if _fits(key, path)), config.r)


def _fits(key: str, path: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{key})", path) is not None


def as_plain_lora(
    config: LoraConfig, tensors: Mapping[str, Mapping[str, HostTensor]]
) -> tuple[LoraConfig, dict[str, dict[str, HostTensor]]]:
    """Return PiSSA as a change of the untouched base: plain LoRA of twice the rank, with the same scale.

    scaling * (lora_b lora_a - first_b first_a) = scaling * [lora_b, -first_b] [lora_a; first_a]

    Args:
        config: Of any LoRA; all but PiSSA stay as they are.
        tensors: By the layer's path and the parameter's name in the cell.
    """
    if config.init_lora_weights != "pissa":
        return config, {path: dict(held) for path, held in tensors.items()}
    factor = math.sqrt(2) if config.use_rslora else 2.0  # so that alpha / r, or alpha / sqrt(r), stays
    plain = config.model_copy(
        update={
            "init_lora_weights": "default",
            "r": 2 * config.r,
            "lora_alpha": factor * config.lora_alpha,
            "rank_pattern": {key: 2 * rank for key, rank in config.rank_pattern.items()},
            "alpha_pattern": {key: factor * alpha for key, alpha in config.alpha_pattern.items()},
        }
    )
    return plain, {
        path: {
            _A: _join(0, held[_A].values, held[_FIRST_A]),
            _B: _join(1, held[_B].values, HostTensor(-held[_FIRST_B].values, held[_FIRST_B].dtype)),
        }
        for path, held in tensors.items()
    }


def _join(axis: int, first: np.ndarray, second: HostTensor) -> HostTensor:
    return HostTensor(np.concatenate([first, second.values], axis), second.dtype)


def _leaves(config: LoraConfig, path: str, layer: nn.Cell) -> tuple[Leaf, ...]:
    rank = find_rank(config, path)
    layer = view_layer(path, layer).layer
    if isinstance(layer, nn.Embedding):
        return (
            _leaf("lora_embedding_A", _A, rank, layer.vocab_size),
            _leaf("lora_embedding_B", _B, layer.embedding_size, rank),
        )
    if isinstance(layer, nn.Conv2d):
        _check_convolution(path, layer)
        return (
            _leaf("lora_A.weight", _A, rank, layer.in_channels, *layer.kernel_size),
            _leaf("lora_B.weight", _B, layer.out_channels, rank // layer.group, 1, 1),
        )
    leaves = (_leaf("lora_A.weight", _A, rank, layer.in_channels), _leaf("lora_B.weight", _B, layer.out_channels, rank))
    magnitude = _leaf("lora_magnitude_vector", _MAGNITUDE, layer.out_channels)
    return (*leaves, magnitude) if config.use_dora else leaves


def _leaf(theirs: str, ours: str, *shape: int) -> Leaf:
    return Leaf(theirs, ours, shape, shape)


def _check_convolution(path: str, layer: nn.Conv2d) -> None:
    """Refuse a convolution that PEFT computes otherwise, or that torch has not."""
    if layer.pad_mode == "same" and max(layer.stride) > 1:
        raise InputError(
            f"{path} has pad_mode 'same' with the stride {layer.stride}, which torch has not; give the convolution"
            " pad_mode 'pad' or 'valid', or merge the adapter"
        )
    if max(layer.dilation[-2:] if isinstance(layer.dilation, tuple) else (layer.dilation,)) > 1:
        raise InputError(
            f"{path} has the dilation {layer.dilation}, which LoRA in PEFT leaves out; merge the adapter instead"
        )


def _fields_of(source: Source, paths: list[str]) -> dict[str, Any]:
    """Return the patterns without keys that fit no adapted layer, which PEFT passes over; and refuse other starts."""
    if source.config.get("init_lora_weights") not in _STARTS:
        source.refuse(
            f"init_lora_weights is {source.config['init_lora_weights']!r}, which has changed the base too",
            "save the adapter as plain LoRA, with path_initial_model_for_weight_conversion, as PEFT's guide says",
        )
    others = [path for path in paths if path not in source.network.dense_paths]
    if source.config.get("use_dora") is True and others:
        source.refuse(f"use_dora is true and {others[0]} is no dense layer", "leave the layer out, or merge with PEFT")
    return {name: _fitting(source, name, paths) for name in ("rank_pattern", "alpha_pattern")}


def _fitting(source: Source, name: str, paths: list[str]) -> dict[str, Any]:
    pattern = source.config.get(name) or {}
    if not isinstance(pattern, dict):
        source.refuse(f"{name} is {pattern!r}, and a value for each of some names is accepted", "correct it")
    try:
        return {key: value for key, value in pattern.items() if any(_fits(key, path) for path in paths)}
    except re.error as error:
        source.refuse(f"{name} has a key that is no regular expression ({error})", "correct it")


FAMILY = Family(
    peft_type="LORA",
    config=LoraConfig,
    fields=(*("r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),),
    idle=frozenset(
        {
            *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
            *("megatron_core", "qalora_group_size", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
            *("runtime_config", "velora_config"),
        }
    ),
    endings=(*("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),),
    candidates=lambda network: network.lora_paths,
    fields_of=_fields_of,
    leaves=_leaves,
    always={"fan_in_fan_out": False, "init_lora_weights": True},
)
