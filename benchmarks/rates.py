"""How fast this machine multiplies matrices: the least time of several tries, by each library."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np

__all__ = ["product_rates"]

_ROWS, _INPUTS, _OUTPUTS = 1024, 768, 3072
_TRIES = 15


def product_rates() -> dict[str, float]:
    """Return the rate of a product of BERT-base, in GFLOP/s, by library and dtype.

    A row of MindSpore's results is read each time, as its calls return before they are done.
    """
    import mindspore
    import torch
    from mindspore import Tensor, ops

    from mindpet import kernels

    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    generator = np.random.default_rng(0)
    x, weight = (generator.normal(size=size).astype(np.float32) for size in ((_ROWS, _INPUTS), (_OUTPUTS, _INPUTS)))
    ours, theirs = (Tensor(x), Tensor(weight)), (torch.from_numpy(x), torch.from_numpy(weight).T)
    brain = tuple(one.bfloat16() for one in theirs)
    multiply = ops.MatMul(transpose_b=True)

    def native(kind: str) -> Callable[[], object]:
        def compute() -> object:
            kernels.use_kernels(kind)
            return kernels.dense_frozen(*ours)[0].asnumpy()

        return compute

    products: dict[str, Callable[[], object]] = {
        "MindSpore (oneDNN) float32": lambda: multiply(*ours)[0].asnumpy(),
        "torch float32": lambda: torch.matmul(*theirs),
        "torch bfloat16": lambda: torch.matmul(*brain),
    }
    names = {"f32": "mindpet float32", "bf16": "mindpet bfloat16"}
    products |= {names[kind]: native(kind) for kind in kernels.possible_kernels() if kind in names}
    best = dict.fromkeys(products, float("inf"))
    for _ in range(_TRIES):
        for name, product in products.items():
            start = time.perf_counter()
            product()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: 2e-9 * _ROWS * _INPUTS * _OUTPUTS / seconds for name, seconds in best.items()}
