"""Hand prefix keys and values to the attentions of a network that take them.

An attention takes a prefix when it has `prefix` (None until it is fed), `num_heads` and `head_dim` (of its keys and
values), and its `construct` says, before scores are computed:

    if self.prefix is not None:
        key, value, mask = self.prefix(key, value, mask)

with keys and values of shape (batch, length, num_heads * head_dim) and a mask (batch, 1, 1 or query length, length)
that is added to the scores: 0 is visible.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from mindpet.delta.prefix_layer import PrefixLayer
from mindpet.delta.ptuning2 import PrefixEncoder

__all__ = ["ENCODER_NAME", "EncoderPrefix", "LayerPrefix", "name_parameters", "takes_prefix"]

ENCODER_NAME = "mindpet_prefix_encoder"  # where the encoder that all attentions share hangs on the network


class LayerPrefix(nn.Cell):
    """The prefix of one attention, from a layer of its own.

    Args:
        layer: Made with batch_size=1, so that it serves any batch.
    """

    def __init__(self, layer: PrefixLayer) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prepend the prefix to keys and values (batch, length, hidden) and to an additive mask (..., length)."""
        return self.layer.extend(key, value, mask, additive=True)


class EncoderPrefix(nn.Cell):
    """The prefix of one attention, from the encoder that all attentions share.

    Args:
        encoder: The encoder.
        number: Which of its layers this attention is.
    """

    def __init__(self, encoder: PrefixEncoder, number: int) -> None:
        super().__init__(auto_prefix=False)
        self.encoder = encoder
        self.number = number

    def construct(self, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prepend the prefix to keys and values (batch, length, hidden) and to an additive mask (..., length)."""
        prefix = self.encoder.layer_prefix(self.number, key.shape[0], key.dtype)
        return self.encoder.extend(prefix, key, value, mask, additive=True)


def takes_prefix(cell: nn.Cell) -> bool:
    """Tell whether a cell is an attention that takes a prefix."""
    return all(hasattr(cell, name) for name in ("prefix", "num_heads", "head_dim"))


def name_parameters(cell: nn.Cell, path: str) -> None:
    """Name the parameters of a new cell as if it hung at `path`."""
    for name, parameter in cell.parameters_and_names():
        parameter.name = f"{path}.{name}"
