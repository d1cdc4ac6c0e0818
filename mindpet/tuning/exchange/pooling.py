"""What other libraries compute otherwise about a network, whatever its adapter."""

from __future__ import annotations

import warnings

from mindspore import nn

__all__ = ["warn_of_pooling"]

_OF_TRANSFORMERS = "pooler"


def warn_of_pooling(net: nn.Cell) -> None:
    """Warn where a network pools its positions otherwise than the class of that name in transformers."""
    pooling = getattr(net, "pooling", _OF_TRANSFORMERS)
    if pooling != _OF_TRANSFORMERS:
        warnings.warn(
            f"the classifier sees the network's {pooling!r} pooling, and that of transformers' class sees its pooler:"
            " the hidden states are the same there, the logits are not. Pool the hidden states yourself, or train with"
            " pooling='pooler'.",
            stacklevel=3,
        )
