"""The processes of a data-parallel run, as each of them sees itself and the others.

Every rank walks the same batches and computes its own rows of each. What decides how a run goes on (the loss, whether
gradients overflow, a wish to stop) is joined over the ranks, so that all of them decide alike.
"""

from __future__ import annotations

import hashlib
import os
import sys
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, communication, nn, ops

from mindpet.kernels import IGNORED_LABEL
from mindpet.train.cluster import in_cluster, is_scheduler
from mindpet.train.launch import end_quietly
from mindpet.utils.environment import first_line
from mindpet.utils.exceptions import InputError

__all__ = ["ALONE", "Ranks", "join_ranks"]


_PATIENCE = "1800"  # seconds for which a rank on a CPU waits for another one; MindSpore takes 30 by itself


class _Sum(nn.Cell):
    """The sum of a float32 tensor over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_reduce(values)


class Ranks:
    """One rank and its place among all of them.

    Args:
        number: The rank's own number, from 0.
        count: How many ranks there are; with 1, nothing is sent to anyone.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number = number
        self.count = count
        self._sum = _Sum()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.number == 0

    def rows_of(self, batch_size: int) -> slice:
        """Return the rows of a batch that this rank computes; `batch_size` is a multiple of the number of ranks."""
        share = batch_size // self.count
        return slice(self.number * share, (self.number + 1) * share)

    def part_of(self, batch: Any) -> Any:
        """Return this rank's rows of a batch, a NamedTuple of arrays (batch, ...)."""
        rows = self.rows_of(len(batch.labels))
        return batch._make(values[rows] for values in batch)

    def weight_of(self, batch: Any) -> float:
        """Return what this rank's mean loss counts in the mean over the ranks.

        That is ranks * own targets / all targets of the batch, as fillers and targets are spread unevenly: the mean
        over the ranks of weight * (mean over own targets) is then the mean over all targets of the batch.
        """
        own, all_of_them = (int(np.sum(rows.labels != IGNORED_LABEL)) for rows in (self.part_of(batch), batch))
        return self.count * own / max(all_of_them, 1)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of `values` (float32, the same shape everywhere) over the ranks; each must call it."""
        return values if self.count == 1 else self._sum(Tensor(values)).asnumpy()

    def mean(self, value: float) -> float:
        """Return the mean of `value` over the ranks; each must call it."""
        return value if self.count == 1 else float(self.sum(np.array([value], np.float32))[0]) / self.count

    def any(self, wish: bool) -> bool:
        """Tell whether at least one rank has this wish; each must call it."""
        return bool(self.sum(np.array([wish], np.float32))[0] > 0)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.sum(np.zeros(1, np.float32))

    def require_same(self, what: str) -> None:
        """Wait for all ranks, and refuse to go on when they have read different things.

        Args:
            what: A text that must be the same on every rank.

        Raises:
            InputError: It is another one elsewhere; at least one rank notices.
        """
        digest = np.frombuffer(hashlib.sha256(what.encode()).digest(), np.uint8).astype(np.float32)
        if not np.array_equal(self.sum(digest), digest * self.count):
            raise InputError(
                f"rank {self.number}: model, data, settings or saved state are not those of the other ranks; give "
                "every rank the same files"
            )


ALONE = Ranks()


def join_ranks(count: int) -> Ranks:
    """Meet the other ranks and return this one's place; the device must have been chosen.

    The process that only brings the ranks together, which `msrun` starts from the same command, stays in here until
    they are done, and ends.

    Args:
        count: How many ranks the run has.
    """
    if not in_cluster():
        return ALONE
    os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", _PATIENCE)
    try:
        communication.init()
    except RuntimeError as error:
        if is_scheduler():
            sys.exit(f"mindpet: {first_line(error)}")
        raise
    if is_scheduler():
        sys.exit(0)
    end_quietly()
    mindspore.set_auto_parallel_context(parallel_mode="data_parallel", gradients_mean=True, device_num=count)
    return Ranks(communication.get_rank(), count)
