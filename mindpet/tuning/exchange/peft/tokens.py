"""Trainable tokens in PEFT's folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from mindspore import nn

from mindpet.tuning.config import TrainableTokensConfig
from mindpet.tuning.exchange.peft.frame import PREFIX, Family, Leaf, Source
from mindpet.tuning.exchange.values import HostTensor
from mindpet.tuning.heads import find_sharers
from mindpet.tuning.layers import Network
from mindpet.utils.names import DELTA_MARK

__all__ = ["FAMILY", "copy_for_heads", "set_copies_aside"]

_ROWS = "trainable_tokens_delta"


def _leaves(config: TrainableTokensConfig, path: str, layer: nn.Cell) -> tuple[Leaf, ...]:
    shape = (config.size, layer.embedding_size)
    return (Leaf(_ROWS, f"{DELTA_MARK}tokens_rows", shape, shape),)


FAMILY = Family(
    peft_type="TRAINABLE_TOKENS",
    config=TrainableTokensConfig,
    fields=("token_indices",),
    idle=frozenset({"target_modules", "init_weights"}),
    fixed={"modules_to_save": (None, [])},
    endings=(_ROWS,),
    candidates=lambda network: network.embedding_paths,
    leaves=_leaves,
)


def copy_for_heads(network: Network, tensors: Mapping[str, HostTensor]) -> dict[str, HostTensor]:
    """Return the rows once more for each head that is tied to a trained embedding, as PEFT writes them.

    Args:
        network: The network's cells as they were before attaching.
        tensors: What was trained, by PEFT's names.
    """
    return {copy: tensors[name] for copy, name in _copies(network).items() if name in tensors}


def set_copies_aside(source: Source) -> tuple[Source, set[str]]:
    """Return a folder without the rows that PEFT has written once more for tied heads, and the names of these.

    Raises:
        InputError: Such rows are not those of the embedding.
    """
    copies = {copy: name for copy, name in _copies(source.network).items() if {copy, name} <= source.tensors.keys()}
    source.refuse_tensors(
        f"{copy} is not what {name} has, with which it is tied"
        for copy, name in copies.items()
        if not np.array_equal(source.tensors[copy].values, source.tensors[name].values)
    )
    kept = {name: tensor for name, tensor in source.tensors.items() if name not in copies}
    return replace(source, tensors=kept), set(copies)


def _copies(network: Network) -> dict[str, str]:
    """Return PEFT's name for the rows of each tied head, with that for the rows of its embedding."""
    return {
        f"{PREFIX}{head}.{_ROWS}": f"{PREFIX}{path}.{_ROWS}"
        for path in network.embedding_paths
        for head in find_sharers(network, path)
    }
