"""VeRA in PEFT's folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from mindspore import nn

from mindpet.delta.vera import make_projection
from mindpet.tuning.config import VeraConfig
from mindpet.tuning.exchange.peft.frame import Family, Leaf, Source
from mindpet.tuning.exchange.values import HostTensor, read
from mindpet.tuning.layers import view_layer
from mindpet.utils.names import DELTA_MARK

__all__ = ["FAMILY", "check_pair", "make_pair"]

_PAIR = ("base_model.vera_A", "base_model.vera_B")  # what all layers share, made from a seed


def make_pair(config: VeraConfig, layers: Mapping[str, nn.Cell]) -> dict[str, HostTensor]:
    """Return the pair that the layers share, as it follows from the seed, by PEFT's names.

    Args:
        config: Says rank and seed.
        layers: The adapted layers, by path; the largest of them says how large the pair is.
    """
    views = [view_layer(path, layer).layer for path, layer in layers.items()]
    inputs, outputs = (max(getattr(one, side) for one in views) for side in ("in_channels", "out_channels"))
    pair = make_projection(inputs, outputs, config.r, config.projection_prng_key)
    return dict(zip(_PAIR, map(read, pair), strict=True))


def _leaves(config: VeraConfig, path: str, layer: nn.Cell) -> tuple[Leaf, ...]:
    outputs = view_layer(path, layer).layer.out_channels
    return (
        Leaf("vera_lambda_b", f"{DELTA_MARK}vera_lambda_b", (outputs,), (outputs,)),
        Leaf("vera_lambda_d", f"{DELTA_MARK}vera_lambda_d", (config.r,), (config.r,)),
    )


def check_pair(source: Source, config: VeraConfig, paths: Iterable[str]) -> set[str]:
    """Check the saved pair against the seed's, and return the names in the file that are used up.

    Raises:
        InputError: It is lost though the configuration says that it was saved, or it has not come from the seed.
    """
    is_saved = source.config.get("save_projection", True)
    expected = make_pair(config, {path: source.network.cells[path] for path in paths})
    problems = []
    for name, tensor in expected.items():
        found = source.tensors.get(name)
        if found is None:
            problems += [f"{name} is missing, which save_projection asks for"] if is_saved else []
        elif found.shape != tensor.shape:
            problems.append(f"{name} is {list(found.shape)}, and the adapted layers ask for {list(tensor.shape)}")
        elif found.dtype != tensor.dtype:
            problems.append(
                f"{name} is {found.dtype}, a rounding of what projection_prng_key gives, with which the numbers differ;"
                " save the adapter from a float32 model, or with save_projection=False"
            )
        elif not np.array_equal(found.values, tensor.values):
            problems.append(f"{name} is not what projection_prng_key {config.projection_prng_key} gives")
    source.refuse_tensors(problems)
    return expected.keys() & source.tensors.keys()


FAMILY = Family(
    peft_type="VERA",
    config=VeraConfig,
    fields=("r", "vera_dropout", "d_initial", "projection_prng_key"),
    idle=frozenset({"target_modules", "layers_to_transform", "layers_pattern", "save_projection", "init_weights"}),
    fixed={"bias": ("none",)},
    endings=("vera_lambda_b", "vera_lambda_d"),
    candidates=lambda network: network.dense_paths,
    leaves=_leaves,
    always={"fan_in_fan_out": False, "bias": "none", "save_projection": True},
)
