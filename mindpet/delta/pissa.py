"""PiSSA: LoRA that starts from the weight's principal singular values and vectors (arXiv:2404.02948)."""

from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from mindpet.delta._checks import check_not_above
from mindpet.delta._dense import make_parameter
from mindpet.delta._host import host_values
from mindpet.delta._shard import shard_methods
from mindpet.delta._state import refuse_merged_training
from mindpet.delta.lora import LoRADense

__all__ = ["PiSSADense", "principal_factors"]


def principal_factors(weight: np.ndarray, rank: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors of the best approximation of `weight` of that rank, divided by `scaling`.

    With the singular value decomposition weight = U diag(s) V^T, in float64, lora_a = diag(sqrt(s / scaling)) V^T and
    lora_b = U diag(sqrt(s / scaling)), each cut to the `rank` largest values, so that scaling * lora_b lora_a is the
    approximation; the sign of a negative scaling goes into lora_b. The signs of the vectors, which the decomposition
    leaves open, are chosen so that the largest entry of each row of lora_a is positive.

    Args:
        weight: of shape (out_channels, in_channels).
        rank: at most the smaller of the two.
        scaling: not 0.

    Returns:
        lora_a (rank, in_channels) and lora_b (out_channels, rank), float32.
    """
    if not weight.any():
        return np.zeros((rank, weight.shape[1]), np.float32), np.zeros((len(weight), rank), np.float32)
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    left, right, roots = left[:, :rank], right[:rank], np.sqrt(values[:rank] / abs(scaling))
    largest = np.take_along_axis(right, np.abs(right).argmax(1)[:, None], 1)
    roots *= np.where(largest[:, 0] < 0, -1, 1)
    return (roots[:, None] * right).astype(np.float32), (np.sign(scaling) * left * roots).astype(np.float32)


class PiSSADense(LoRADense):
    r"""A dense layer with a LoRA branch that starts at the weight's principal part and is counted from there.

    outputs = activation(x weight^T + bias + scaling * (y lora_a^T lora_b^T - x first_a^T first_b^T))

    with y = dropout(x) and scaling = lora_alpha / lora_rank. The factors start as `principal_factors` of the weight;
    `first_a` and `first_b` keep what they started with. The paper subtracts the first product from the weight, which
    this layer leaves as it is, so that old checkpoints fit and an adapter can be taken away. The numbers are the same.

    Without dropout the two products are computed as one of twice the rank,

    lora_b lora_a - first_b first_a = lora_b (lora_a - first_a) + (lora_b - first_b) first_a,

    which is exactly zero at first, and has no difference of two large numbers later.

    `mindpet_delta_lora_a` (lora_rank, in_channels) and `mindpet_delta_lora_b` (out_channels, lora_rank) are meant to be
    trained; `freeze_delta(network, 'lora')` freezes the rest. The first ones, `mindpet_delta_lora_first_a` and
    `mindpet_delta_lora_first_b`, are Parameters without gradient; they belong to the adapter, which with them is a
    change of the untouched weight of rank 2 lora_rank. Who gives the weight other values afterwards, by loading a
    checkpoint for example, calls `reset_factors` then.

    In semi-automatic parallel mode the rows or the channels may be split. Both at once MindSpore's planner refuses
    where the products run in the parameters' own dtype, because it would give one parameter two layouts.

    Args:
        args: the arguments of LoRADense; `lora_a_init` and `lora_b_init` have no effect, as both follow from the
            weight.
        kwargs: likewise.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError, NotPositiveError, KeyError: as LoRADense does.
        ValueError: as LoRADense does; `lora_rank` exceeds `in_channels` or `out_channels`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_not_above("lora_rank", self.lora_rank, "in_channels", self.in_channels)
        check_not_above("lora_rank", self.lora_rank, "out_channels", self.out_channels)
        self.mindpet_delta_lora_first_a = _frozen_twin(self.mindpet_delta_lora_a, "mindpet_delta_lora_first_a")
        self.mindpet_delta_lora_first_b = _frozen_twin(self.mindpet_delta_lora_b, "mindpet_delta_lora_first_b")
        # Without a strategy, data parallelism would cut these matrices, which have no batch.
        self.sub_a = ops.Sub().shard(((1, 1), (1, 1)))
        self.sub_b = ops.Sub().shard(((1, 1), (1, 1)))
        self.stack_a = ops.Concat(0).shard(((1, 1), (1, 1)))
        self.stack_b = ops.Concat(1).shard(((1, 1), (1, 1)))
        self.reset_factors()

    def take_over(self, dense: nn.Dense) -> None:
        """Use the Parameters, primitives, activation and training flag of `dense`, and start at its principal part."""
        super().take_over(dense)
        self.reset_factors()

    def reset_factors(self) -> None:
        """Let the factors start anew, from the weight as it is now; a singular value decomposition on the host."""
        weight = host_values(self.weight)
        weight = weight if self.matmul.transpose_b else weight.T
        lora_a, lora_b = principal_factors(weight, self.lora_rank, float(host_values(self.scaling)))
        self.put_factors(np.concatenate([lora_a, lora_a]), np.concatenate([lora_b, -lora_b], 1))

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the change as LoRA factors of twice the rank, to be added to the untouched weight, in float32.

        Returns:
            [lora_a; first_a] of shape (2 lora_rank, in_channels) and [lora_b, -first_b] of shape (out_channels,
            2 lora_rank). With the same `scaling` a plain LoRA layer of that rank computes what this one does.
        """
        lora_a, lora_b, first_a, first_b = map(host_values, self._all_factors())
        return np.concatenate([lora_a, first_a]), np.concatenate([lora_b, -first_b], 1)

    def put_factors(self, lora_a: np.ndarray, lora_b: np.ndarray) -> None:
        """Take factors as `factors` returns them; training goes on from there."""
        rank = self.lora_rank
        values = (lora_a[:rank], lora_b[:, :rank], lora_a[rank:], -lora_b[:, rank:])
        for parameter, value in zip(self._all_factors(), values, strict=True):
            parameter.set_data(Tensor(np.ascontiguousarray(value)).astype(parameter.dtype))

    def branch(self, rows: Tensor) -> Tensor:
        """Return scaling * (y lora_a^T lora_b^T - rows first_a^T first_b^T), of shape (rows, out_channels)."""
        refuse_merged_training(self)
        dropped = self.lora_dropout(rows)
        change = self.low_rank(dropped)
        if self.training and self.lora_dropout.p > 0:
            first_a = self.cast(self.mindpet_delta_lora_first_a, self.compute_dtype)
            first_b = self.cast(self.mindpet_delta_lora_first_b, self.compute_dtype)
            change = change + self.lora_b_matmul(self.lora_a_matmul(dropped - rows, first_a), first_b)
        return self.mul(change, self.cast(self.scaling, self.compute_dtype))

    def low_rank(self, rows: Tensor) -> Tensor:
        """Return rows (lora_b lora_a - first_b first_a)^T as one product of twice the rank."""
        lora_a, lora_b = self.mindpet_delta_lora_a, self.mindpet_delta_lora_b
        first_a, first_b = self.mindpet_delta_lora_first_a, self.mindpet_delta_lora_first_b
        a = self.stack_a((self.sub_a(lora_a, first_a), first_a))  # (2 lora_rank, in_channels)
        b = self.stack_b((lora_b, self.sub_b(lora_b, first_b)))  # (out_channels, 2 lora_rank)
        hidden = self.lora_a_matmul(rows, self.cast(a, self.compute_dtype))
        return self.lora_b_matmul(hidden, self.cast(b, self.compute_dtype))

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the values with which the base layer alone computes what this layer does, by attribute, in float32.

        That is weight + scaling * (lora_b lora_a - first_b first_a), computed on the host in the weight's own layout.
        """
        lora_a, lora_b, first_a, first_b = map(host_values, self._all_factors())
        change = host_values(self.scaling) * (lora_b @ (lora_a - first_a) + (lora_b - first_b) @ first_a)
        return {"weight": host_values(self.weight) + (change if self.matmul.transpose_b else change.T)}

    shard, shard_like = shard_methods(
        {
            "strategy_org_dense_matmul": ("matmul", "ni,oi"),
            "strategy_org_bias_add": ("bias_add", "no,o"),
            "strategy_lora_dropout": ("lora_dropout.dropout", "ni"),
            "strategy_sub_a": ("sub_a", "ri,ri"),
            "strategy_stack_a": ("stack_a", "ri,ri"),
            "strategy_lora_a_matmul": ("lora_a_matmul", "ni,ri"),
            "strategy_sub_b": ("sub_b", "or,or"),
            "strategy_stack_b": ("stack_b", "or,or"),
            "strategy_lora_b_matmul": ("lora_b_matmul", "nr,or"),
            "strategy_lora_mul": ("mul", "no,"),
            "strategy_lora_add": ("add", "no,no"),
            "strategy_activation": ("activation", "no"),
        }
    )

    def _all_factors(self) -> tuple[Parameter, Parameter, Parameter, Parameter]:
        return (
            self.mindpet_delta_lora_a,
            self.mindpet_delta_lora_b,
            self.mindpet_delta_lora_first_a,
            self.mindpet_delta_lora_first_b,
        )


def _frozen_twin(factor: Parameter, name: str) -> Parameter:
    twin = make_parameter(name, "zeros", tuple(factor.shape), factor.dtype, name)
    twin.requires_grad = False
    return twin
