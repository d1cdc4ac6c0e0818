"""Trainable tokens in PEFT's folders."""

from __future__ import annotations

from mindspore import nn

from mindpet.tuning.config import TrainableTokensConfig
from mindpet.tuning.exchange.peft.frame import Family, Leaf
from mindpet.utils.names import DELTA_MARK

__all__ = ["FAMILY"]


def _leaves(config: TrainableTokensConfig, path: str, layer: nn.Cell) -> tuple[Leaf, ...]:
    shape = (config.size, layer.embedding_size)
    return (Leaf("trainable_tokens_delta", f"{DELTA_MARK}tokens_rows", shape, shape),)


FAMILY = Family(
    peft_type="TRAINABLE_TOKENS",
    config=TrainableTokensConfig,
    fields=("token_indices",),
    idle=frozenset({"target_modules", "init_weights"}),
    fixed={"modules_to_save": (None, [])},
    endings=("trainable_tokens_delta",),
    candidates=lambda network: network.embedding_paths,
    leaves=_leaves,
)
