"""Bottleneck adapters in the layout of the `adapters` library (1.3), for BERT.

Its sequential bottleneck with `residual_before_ln` computes `y + W_up f(W_down y + b_down) + b_up` of the same dense
layer's output `y`, before the residual connection and its normalisation, as AdapterDense does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mindspore import nn

from mindpet.tuning.config import AdapterConfig
from mindpet.tuning.exchange.active import ActiveAdapter
from mindpet.tuning.exchange.folder import Content
from mindpet.tuning.state import PeftState
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK

__all__ = ["ACTIVATIONS", "as_bottlenecks"]

_VERSION = "adapters.1.3.0"
_PLACE = re.compile(r"bert\.encoder\.layer\.(?P<layer>\d+)\.(?P<place>attention\.output|output)\.dense")
_HEAD = "classifier"
_BLOCK = f"{DELTA_MARK}adapter.{DELTA_MARK}adapter_block.{DELTA_MARK}adapter_"
_LEAVES = {"down_sampler": "adapter_down.0", "up_sampler": "adapter_up"}
# What transformers calls the activations here. Its own `gelu` is the exact one; its leaky_relu has another slope.
ACTIVATIONS = {
    "gelu": "gelu_new",
    "relu": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "tanh": "tanh",
}
# Of the library's bottleneck: one that follows the layer, without normalisations, gates or factors of its own.
_FIXED = {
    **dict.fromkeys(("adapter_residual_before_ln", "cross_adapter", "is_parallel", "ln_after", "ln_before"), False),
    **dict.fromkeys(("original_ln_before", "phm_layer", "use_gating"), False),
    **dict.fromkeys(("original_ln_after", "residual_before_ln"), True),
    "dropout": 0.0,
    "init_weights": "bert",
    "inv_adapter": None,
    "scaling": 1.0,
    "stochastic_depth": 0.0,
}


def as_bottlenecks(net: nn.Cell, state: PeftState, base: str | None) -> Content:
    """Return the active adapter as the `adapters` library keeps it.

    Args:
        net: A network with bottleneck adapters attached.
        state: What is attached to it.
        base: The name or folder of the model that it was trained on.

    Raises:
        InputError: The library has no bottleneck at such a place, or not its activation, or no such trained module.
    """
    adapter = ActiveAdapter(net, state)
    config: Any = adapter.config
    paths = [one.path for one in state.own_replacements]
    places = _read_places(paths)
    if config.non_linearity not in ACTIVATIONS:
        raise InputError(
            f"non_linearity is {config.non_linearity!r}, and the adapters library has {', '.join(ACTIVATIONS)}; keep"
            " it with mindpet.save_adapter"
        )
    if set(adapter.saved) - {_HEAD}:
        raise InputError(
            f"modules_to_save holds {', '.join(adapter.saved)}, and the adapters library takes {_HEAD} only; keep it"
            " with mindpet.save_adapter"
        )
    about = _describe(net, base)
    name = state.active
    depth = len({int(match["layer"]) for path in adapter.view.cells if (match := _PLACE.fullmatch(path))})
    block = _FIXED | {
        "mh_adapter": "attention.output" in places,
        "output_adapter": "output" in places,
        "leave_out": sorted(set(range(depth)) - next(iter(places.values()))),
        "non_linearity": ACTIVATIONS[config.non_linearity],
        "reduction_factor": _factor(about["hidden_size"], config),
    }
    tensors = {
        f"{path.removesuffix('.dense')}.adapters.{name}.{theirs}.{leaf}": held[f"{_BLOCK}{ours}.{leaf}"]
        for path, held in adapter.parts(paths).items()
        for ours, theirs in _LEAVES.items()
        for leaf in ("weight", "bias")
    }
    objects = {"adapter_config.json": about | {"config": block, "name": name}}
    files = {"adapter.safetensors": tensors}
    if adapter.saved:
        labels = {f"LABEL_{number}": number for number in range(about["num_labels"])}
        objects["head_config.json"] = about | {"config": None, "label2id": labels, "name": None}
        files["model_head.safetensors"] = adapter.trained
    return Content(objects, files)


def _read_places(paths: Sequence[str]) -> dict[str, set[int]]:
    """Return the layers that have a bottleneck, by the place in the layer.

    Raises:
        InputError: One is elsewhere, or not all layers have the same ones.
    """
    places: dict[str, set[int]] = {}
    for path in paths:
        match = _PLACE.fullmatch(path)
        if match is None:
            raise InputError(
                f"{path} has a bottleneck, which the adapters library puts after attention.output.dense and"
                " output.dense of BERT's layers only; keep it with mindpet.save_adapter"
            )
        places.setdefault(match["place"], set()).add(int(match["layer"]))
    if len(set(map(frozenset, places.values()))) > 1:
        raise InputError(
            "some layers have one bottleneck and others two, and the adapters library gives each layer the same; keep"
            " it with mindpet.save_adapter"
        )
    return places


def _describe(net: Any, base: str | None) -> dict[str, Any]:
    return {
        "hidden_size": net.config.hidden_size,
        "model_class": type(net).__name__,
        "model_name": base,
        "model_type": "bert",
        "num_labels": net.config.num_labels,
        "version": _VERSION,
    }


def _factor(hidden: int, config: AdapterConfig) -> float:
    """Return the factor by which the library divides the hidden size, and rounds down, to get the bottleneck."""
    size = config.bottleneck_size
    return hidden // size if hidden % size == 0 else hidden / (size + 0.5)
