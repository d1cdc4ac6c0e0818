"""Dropout whose mask can be a function of seed, step, layer and rank alone.

MindSpore's own mask follows neither the seed nor a saved random state: on a CPU it depends on how the work was split
among the threads. A run that is to be repeated, or resumed after it was killed, needs a mask that can be made again.
"""

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

__all__ = ["Dropout"]


def _constant(value: int) -> Tensor:
    return Tensor(np.array(value, np.uint32))


_GOLDEN = _constant(0x9E3779B9)  # 2^32 divided by the golden ratio: its multiples lie far apart
_FIRST_SHIFT, _SECOND_SHIFT = _constant(16), _constant(15)
_FIRST_FACTOR, _SECOND_FACTOR = _constant(0x7FEB352D), _constant(0x846CA68B)
_ONE = _constant(1)


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws its mask as ever, or computes it once `use_mask` was called.

    In training each element is 0 with probability `p` and is multiplied by 1 / (1 - p) otherwise; out of training, and
    with p = 0, the input is returned. `dropout` is the primitive that shard strategies name.

    Args:
        p (Union[int, float]): the probability, in [0, 1).

    Inputs:
        - **x** (Tensor) - of any shape with at least one axis, with a floating dtype.

    Outputs:
        Tensor of the shape and dtype of `x`.
    """

    def __init__(self, p: float) -> None:
        super().__init__(p=p)
        self.threshold = _constant(min(round(p * 2**32), 2**32 - 1))
        self.scale = 1 / (1 - p)
        self.step: Any = None

    def use_mask(self, step: Parameter, seed: int, layer: int, rank: int = 0) -> None:
        """Compute the mask from these numbers from now on; to be called before the cell runs in training.

        Under data parallelism rank n sees the n-th part of each batch, and has the n-th part of the whole batch's mask.

        Args:
            step: The number of the step, int32 of shape () without gradient; who trains raises it for each step. A
                cell that is called twice in a step has the same mask twice.
            seed: From 0 to 2^32 - 1.
            layer: From 0 to 2^32 - 1, another one for each dropout of a network.
            rank: Which part of the batch, along the first axis, the input belongs to, from 0.
        """
        self.step = step
        self.rank = rank
        self.seed = _constant(seed)
        self.layer = _constant(layer)

    def use_rank(self, rank: int) -> None:
        """Let MindSpore's own mask, where it follows a seed, be another one on each rank; to be called once."""
        self.dropout.add_prim_attr("Seed1", self.dropout.Seed1 + rank)

    def construct(self, x: Tensor) -> Tensor:
        """Return `x`, with elements dropped in training."""
        if not self.training or self.p == 0:
            return x
        if self.step is None:
            kept, _ = self.dropout(x)
            return kept
        return x * self.mask(x.shape).astype(x.dtype)

    def mask(self, shape: tuple[int, ...]) -> Tensor:
        """Return the mask of the step at hand: a float32 tensor of `shape`, 0 where an element is dropped.

        With a hash h that depends on seed, step and layer, the element in row i and column j (all axes but the last
        make the rows, counted over the parts of all ranks) is dropped where row_i * column_j mod 2^32 < p * 2^32, with
        row_i = h(i) | 1 and column_j = h'(j) | 1. Multiplying by an odd number permutes the numbers mod 2^32, so that
        each row and column has the right rate; and nothing but this product is computed for every element.
        """
        columns = shape[-1]
        rows = 1
        for size in shape[:-1]:
            rows = rows * size
        key = _mix(_mix(_mix(self.seed + _GOLDEN) + self.step.astype(mstype.uint32)) + self.layer * _GOLDEN)
        own_rows = _odd_numbers(self.rank * rows, rows, key).reshape((rows, 1))
        product = own_rows * _odd_numbers(0, columns, _mix(key + _GOLDEN))
        kept = (product >= self.threshold).astype(mstype.float32)
        return ops.stop_gradient((kept * self.scale).reshape(shape))


def _odd_numbers(first: int, count: int, key: Tensor) -> Tensor:
    """Return `count` odd numbers mod 2^32 of a sequence that depends on `key` and looks random, from its `first` on."""
    return ops.bitwise_or(_mix(ops.arange(first, first + count).astype(mstype.uint32) * _GOLDEN + key), _ONE)


def _mix(numbers: Tensor) -> Tensor:
    """Permute the numbers mod 2^32 so that each bit of the result depends on all bits of the number."""
    numbers = ops.bitwise_xor(numbers, ops.bitwise_right_shift(numbers, _FIRST_SHIFT)) * _FIRST_FACTOR
    numbers = ops.bitwise_xor(numbers, ops.bitwise_right_shift(numbers, _SECOND_SHIFT)) * _SECOND_FACTOR
    return ops.bitwise_xor(numbers, ops.bitwise_right_shift(numbers, _FIRST_SHIFT))
