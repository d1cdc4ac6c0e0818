"""Hand prefix keys and values to the attentions of a network that take them, and shift the positions of its text.

An attention takes a prefix when it has `prefix` (None until it is fed), `num_heads` and `head_dim` (of its keys and
values), and its `construct` says, before scores are computed:

    if self.prefix is not None:
        key, value, mask = self.prefix(key, value, mask)

with keys and values of shape (batch, length, num_heads * head_dim) and a mask (batch, 1, 1 or query length, length)
that is added to the scores: 0 is visible.

What attentions share is computed once for all where the cell that makes their mask has `shared_prefix` (None at first)
and says

    if self.shared_prefix is not None:
        mask = self.shared_prefix(mask)

and whatever comes out is handed to every attention's `prefix` in the place of the mask, and used for nothing else on
the way. Without such a cell each attention computes it by itself, which costs time with `prefix_projection`.

The text stands after the prefix, so its positions are numbered from the prefix's number of tokens on, as transformers
numbers them after past keys. A cell that numbers positions, absolute or rotary, has `position_shift` (None until a
prefix is attached) and says, before it looks them up:

    if self.position_shift is not None:
        positions = positions + self.position_shift()

`position_shift.tokens` is the largest number that may come out, so that a text too long is refused when the graph is
made. A network without such a cell keeps its positions.
"""

from __future__ import annotations

from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta.prefix_layer import PrefixLayer
from mindpet.delta.ptuning2 import PrefixEncoder
from mindpet.utils.names import STATE_MARK

__all__ = [
    "ENCODER_NAME",
    "EncoderPrefix",
    "LayerPrefix",
    "PositionShift",
    "SharedPrefix",
    "name_parameters",
    "takes_prefix",
]

ENCODER_NAME = "mindpet_prefix_encoder"  # where the encoder that all attentions share hangs on the network

_HIDDEN = 1e4  # subtracted from the score of a hidden key; the softmax then gives exactly 0, in float16 too


class LayerPrefix(nn.Cell):
    """The prefix of one attention, from a layer of its own.

    `mindpet_state_visible` (tokens,), a Parameter without gradient, is 1 for a token that is seen and 0 for one that is
    not.

    Args:
        layer: Made with batch_size=1, so that it serves any batch.
    """

    def __init__(self, layer: PrefixLayer) -> None:
        super().__init__()
        self.layer = layer
        self.mindpet_state_visible = _all_visible(layer.prefix_token_num)

    def construct(self, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Prepend the prefix to keys and values (batch, length, hidden) and to an additive mask (..., length)."""
        key, value, mask = self.layer.extend(key, value, mask, additive=True)
        return key, value, _hide(mask, self.mindpet_state_visible)


class EncoderPrefix(nn.Cell):
    """The prefix of one attention, from the encoder that all attentions share.

    `mindpet_state_visible` is as in LayerPrefix.

    Args:
        encoder: The encoder.
        number: Which of its layers this attention is.
    """

    def __init__(self, encoder: PrefixEncoder, number: int) -> None:
        super().__init__(auto_prefix=False)
        self.encoder = encoder
        self.number = number
        self.mindpet_state_visible = _all_visible(encoder.pre_seq_len)

    def construct(self, key: Tensor, value: Tensor, mask: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Prepend the prefix to keys and values (batch, length, hidden) and to an additive mask (..., length).

        The mask may come with the rows of all layers, from a SharedPrefix.
        """
        rows = None
        if isinstance(mask, tuple):
            rows, mask = mask[1][self.number], mask[0]
        prefix = self.encoder.layer_prefix(self.number, key.shape[0], key.dtype, rows)
        key, value, mask = self.encoder.extend(prefix, key, value, mask, additive=True)
        return key, value, _hide(mask, self.mindpet_state_visible)


class SharedPrefix(nn.Cell):
    """What all attentions need of the encoder that they share, computed once in a forward pass.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: PrefixEncoder) -> None:
        super().__init__(auto_prefix=False)
        self.encoder = encoder

    def construct(self, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mask, and with it the rows of each layer for its EncoderPrefix."""
        return mask, self.encoder.layer_rows()


class PositionShift(nn.Cell):
    """How far a prefix shifts the positions of the text: the number of its tokens that are seen.

    It is the value of a Parameter, so that it follows the adapter that is at work while the graph stays the same.

    Args:
        visible: `mindpet_state_visible` (tokens,) of any attention's prefix; all have the same values.
    """

    def __init__(self, visible: Parameter) -> None:
        super().__init__(auto_prefix=False)
        self.tokens = visible.shape[0]
        self.mindpet_state_visible = visible

    def construct(self) -> Tensor:
        """Return the number of visible tokens, an int32 scalar."""
        return self.mindpet_state_visible.sum().astype(mstype.int32)


def takes_prefix(cell: nn.Cell) -> bool:
    """Tell whether a cell is an attention that takes a prefix."""
    return all(hasattr(cell, name) for name in ("prefix", "num_heads", "head_dim"))


def name_parameters(cell: nn.Cell, path: str) -> None:
    """Name the parameters of a new cell as if it hung at `path`."""
    for name, parameter in cell.parameters_and_names():
        parameter.name = f"{path}.{name}"


def _all_visible(tokens: int) -> Parameter:
    return Parameter(ops.ones((tokens,)), name=f"{STATE_MARK}visible", requires_grad=False)


def _hide(mask: Tensor, visible: Tensor) -> Tensor:
    """Return an additive mask (..., tokens + length) in which the tokens with `visible` 0 are hidden."""
    tokens = visible.shape[0]
    hidden = (visible.astype(mask.dtype) - 1.0) * _HIDDEN
    return ops.concat((mask[..., :tokens] + hidden, mask[..., tokens:]), -1)
