"""Writing the active adapter for other libraries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from mindspore import nn

from mindpet.graph.load import check_network
from mindpet.tuning.config import AdapterConfig, BitFitConfig, LowRankAdapterConfig
from mindpet.tuning.exchange.adapter import find_bad_values, list_some
from mindpet.tuning.exchange.bottlenecks import as_bottlenecks
from mindpet.tuning.exchange.folder import CONFIG_FILE, TENSOR_FILE, check_target, staged_folder
from mindpet.tuning.exchange.merged import TO_MERGE
from mindpet.tuning.exchange.peft.write import as_peft
from mindpet.tuning.exchange.pooling import warn_of_pooling
from mindpet.tuning.exchange.vllm import RANKS, check_vllm
from mindpet.tuning.state import PeftState, check_at_work, require_state
from mindpet.utils.exceptions import InputError

__all__ = ["export_adapter"]

Format = Literal["peft", "vllm", "adapters"]

# What PEFT lacks, and what can be done with it.
_KEEP = "keep it with mindpet.save_adapter, and run it with MindPet"
_WAYS = {
    AdapterConfig: "it has no bottleneck adapters, which cannot be merged either; give format='adapters' "
    f"(`mindpet export --format adapters`), or {_KEEP}",
    LowRankAdapterConfig: f"it has no low-rank adapters, which cannot be merged either; {_KEEP}",
    BitFitConfig: f"it has nothing like BitFit, whose biases are the base's own; {TO_MERGE}",
}


def export_adapter(
    net: nn.Cell,
    folder: str | os.PathLike[str],
    format: Format = "peft",
    *,
    base: str | None = None,
    overwrite: bool = False,
    max_lora_rank: int | None = None,
) -> None:
    """Write the active adapter of a network into a folder that other libraries read.

    The folder appears whole or not at all. What the other library makes of it gives the same outputs; what it would
    compute otherwise is refused. Room for other adapters is not written. `load_adapter` reads PEFT's folders back, bit
    for bit; PiSSA comes back as plain LoRA of twice the rank, which is a change of the untouched base.

    Prefix tuning and P-Tuning v2 are written as the prompt that comes out. What makes it stands beside it, in
    `mindpet_projection.safetensors`, so that training can go on from the folder.

    Args:
        net: The network that was given to `get_peft_model`.
        folder: Where to write. The folders above it are made.
        format: 'peft' for Hugging Face PEFT; 'vllm' for the same files, if vLLM can serve them; 'adapters' for
            bottleneck adapters in BERT, by the library of that name (`load_adapter(folder, use_safetensors=True)`).
        base: The name or folder of the model that it was trained on, for who opens the folder without naming one.
        overwrite: Whether an adapter that stands there is replaced, once the new one is complete.
        max_lora_rank: With 'vllm', the largest rank that the server is started with; by default vLLM's own, 16.

    Raises:
        TypeError: `net` is no Cell.
        InputError: Nothing is attached, several methods are, the adapter is merged or disabled, a value is NaN or
            infinite, the format cannot express it, or the folder cannot be written. Nothing was written then.
    """
    check_network(net)
    target = Path(folder)
    _check_arguments(format, max_lora_rank)
    check_target(target, overwrite)
    state = require_state(net)
    _check_exportable(state, format)
    content = as_bottlenecks(net, state, base) if format == "adapters" else as_peft(net, state, base)
    if bad := [problem for tensors in content.tensors.values() for problem in find_bad_values(tensors)]:
        raise InputError(f"the adapter cannot be exported: {list_some(bad)}; train again with a lower learning rate")
    if format == "vllm":
        check_vllm(content.objects[CONFIG_FILE], content.tensors[TENSOR_FILE], max_lora_rank)
    warn_of_pooling(net)
    with staged_folder(target, overwrite, check_target) as staged:
        content.write(staged)


def _check_arguments(format: object, max_lora_rank: object) -> None:
    if format not in get_args(Format):
        raise InputError(f"format is {format!r}; accepted are {', '.join(get_args(Format))}: choose one of them")
    if max_lora_rank is not None and format != "vllm":
        raise InputError(f"max_lora_rank is {max_lora_rank!r} and format {format!r}; give it with format='vllm' only")
    if max_lora_rank is not None and max_lora_rank not in RANKS:
        raise InputError(f"max_lora_rank is {max_lora_rank!r}; vLLM takes {', '.join(map(str, RANKS))}: choose one")


def _check_exportable(state: PeftState, format: Format) -> None:
    """Refuse what no other library can take over."""
    if state.merged is not None:
        raise InputError("the adapter is merged into the base weights; call mindpet.unmerge before exporting it")
    check_at_work(state)
    if len(state.configs) > 1:
        methods = ", ".join(config.method for config in state.configs)
        raise InputError(f"the adapter combines {methods}, and PEFT's folders hold one method; {_KEEP}")
    (config,) = state.configs
    if format == "adapters" and not isinstance(config, AdapterConfig):
        raise InputError(f"format is 'adapters', for bottleneck adapters, and attached is {config.method}; take 'peft'")
    if format != "adapters" and type(config) in _WAYS:
        raise InputError(f"{config.method} cannot be exported for PEFT: {_WAYS[type(config)]}")
