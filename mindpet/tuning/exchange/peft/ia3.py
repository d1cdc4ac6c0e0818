"""IA3 in PEFT's folders."""

from __future__ import annotations

import re
from typing import Any

from mindspore import nn

from mindpet.tuning.config import IA3Config
from mindpet.tuning.exchange.peft.frame import Family, Leaf, Source
from mindpet.tuning.exchange.peft.matching import pin
from mindpet.tuning.layers import Network, view_layer
from mindpet.utils.names import DELTA_MARK

__all__ = ["FAMILY"]


def _leaves(config: IA3Config, path: str, layer: nn.Cell) -> tuple[Leaf, ...]:
    """Return the vector, which PEFT keeps as a row where it scales inputs and as a column where it scales outputs."""
    layer = view_layer(path, layer).layer
    size = layer.in_channels if _scales_inputs(config, path) else layer.out_channels
    shape = (1, size) if _scales_inputs(config, path) else (size, 1)
    return (Leaf("ia3_l", f"{DELTA_MARK}ia3_scale", shape, (size,)),)


def _scales_inputs(config: IA3Config, path: str) -> bool:
    named = config.feedforward_modules or ()
    return re.fullmatch(named, path) is not None if isinstance(named, str) else path in named


def _candidates(network: Network) -> list[str]:
    return [path for path in network.lora_paths if not isinstance(network.cells[path], nn.Embedding)]


def _fields_of(source: Source, paths: list[str]) -> dict[str, Any]:
    if source.config.get("feedforward_modules") is None:
        source.refuse("feedforward_modules is missing, which the numbers depend on", "name the layers, or give []")
    named = source.names_or_pattern("feedforward_modules")
    if isinstance(named, str):
        found = [path for path in paths if re.fullmatch(named, path)]
    else:
        found = [path for path in paths if any(path.endswith(name) for name in named)]
    return {"feedforward_modules": pin(found, paths) if found else None}


FAMILY = Family(
    peft_type="IA3",
    config=IA3Config,
    fields=(),
    idle=frozenset({"target_modules", "exclude_modules", "feedforward_modules", "init_ia3_weights"}),
    endings=("ia3_l",),
    candidates=_candidates,
    fields_of=_fields_of,
    leaves=_leaves,
    always={"fan_in_fan_out": False},
)
