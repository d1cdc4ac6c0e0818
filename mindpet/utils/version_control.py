"""What existing clients import to be independent of MindSpore's version."""

from mindspore import nn

from mindpet.utils.dropout import Dropout

__all__ = ["get_dropout"]


def get_dropout(dropout_prob: float) -> nn.Dropout:
    """Return a dropout cell that drops each element with probability `dropout_prob`, a number in [0, 1)."""
    return Dropout(dropout_prob)
