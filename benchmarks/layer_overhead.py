"""Measure what LoRA adds to a frozen dense layer: forward and backward of accelerated layers of BERT-base's shapes.

Example: python benchmarks/layer_overhead.py --rank 8
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from worker import run_apart

from mindpet.utils.environment import usable_cores

ROWS = 1024
SHAPES = ((768, 768), (768, 3072), (3072, 768))  # inputs and outputs of the layers of BERT-base

Times = dict[str, list[tuple[float, float]]]  # of each turn of a layer: seconds, and those of all processors


def main(
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each layer has its turn.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the input.")] = ROWS,
) -> None:
    """Time LoRADense beside a frozen dense layer of the same shape, with each kind of kernels, in turns."""
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    table = Table(box=box.MARKDOWN)
    for column in ("kernels", "shape"):
        table.add_column(column)
    for column in ("dense, ms", "LoRA, ms", "overhead, least", "median", "processor time", "arithmetic says"):
        table.add_column(column, justify="right")
    for kind in run_apart(possible_kinds):
        for inputs, outputs in SHAPES:
            times = run_apart(measure, kind, rows, inputs, outputs, rank, rounds)
            table.add_row(kind, f"{inputs} to {outputs}", *figures(times, added_share(inputs, outputs, rank)))
    console = Console(width=160, markup=False, highlight=False, soft_wrap=True)
    console.print(f"# LoRADense of rank {rank} beside a frozen dense layer, {rows} rows, forward and backward\n")
    console.print(table)


def possible_kinds() -> tuple[str, ...]:
    """Return the kernels that this machine has."""
    from mindpet import kernels

    return kernels.possible_kernels()


def measure(kind: str, rows: int, inputs: int, outputs: int, rank: int, rounds: int) -> Times:
    """Return the times of each turn of both layers, the call of the graph included."""
    import mindspore

    from mindpet import kernels

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    kernels.use_kernels(kind)
    takes = {"dense": make_pass(rows, inputs, outputs, None), "lora": make_pass(rows, inputs, outputs, rank)}
    times: Times = {name: [] for name in takes}
    for number in range(rounds + 1):
        for name, take in takes.items():
            start, busy = time.perf_counter(), time.process_time()
            take()
            if number:  # the first one compiles
                times[name].append((time.perf_counter() - start, time.process_time() - busy))
    return times


def make_pass(rows: int, inputs: int, outputs: int, rank: int | None) -> Callable[[], object]:
    """Return a function that runs a layer forward and backward.

    It calls a cell, which returns when its graph is done, as a training step is called. After a function that
    `mindspore.value_and_grad` has made, which returns before that, Python would spin on a core that the layer needs.

    The gradient goes to the input, as within a network, and to LoRA's parameters. The loss looks at one row only, so
    that it costs next to nothing; without a loss MindSpore would leave out a product that no gradient needs.
    """
    import numpy as np
    from mindspore import ParameterTuple, Tensor, nn, ops

    from mindpet import accelerate
    from mindpet.delta.lora import LoRADense

    class Loss(nn.Cell):
        def __init__(self, layer: nn.Cell) -> None:
            super().__init__()
            self.layer = layer

        def construct(self, x: Tensor, slopes: Tensor) -> Tensor:
            return (self.layer(x)[:1] * slopes).sum()

    class Pass(nn.Cell):
        def __init__(self, loss: nn.Cell) -> None:
            super().__init__(auto_prefix=False)
            self.loss = loss
            self.trained = ParameterTuple(loss.trainable_params())
            self.differentiate = ops.GradOperation(get_all=True, get_by_list=bool(self.trained))

        def construct(self, x: Tensor, slopes: Tensor) -> Any:
            if self.trained:
                return self.differentiate(self.loss, self.trained)(x, slopes)
            return self.differentiate(self.loss)(x, slopes)

    layer = nn.Dense(inputs, outputs)
    for parameter in layer.get_parameters():
        parameter.requires_grad = False
    if rank is not None:
        layer = LoRADense.from_dense(layer, rank, 2 * rank, lora_b_init="normal")
    generator = np.random.default_rng(0)
    x = Tensor(generator.normal(size=(rows, inputs)).astype(np.float32))
    slopes = Tensor(generator.normal(size=(1, outputs)).astype(np.float32))
    loss = Loss(layer)
    accelerate(loss)
    return partial(Pass(loss), x, slopes)


def added_share(inputs: int, outputs: int, rank: int) -> float:
    """Return the multiplications that LoRA adds, as a share of those of the frozen layer.

    The layer takes two products of inputs * outputs a row, x W^T and dy W; the branch takes six with a factor of rank:
    x A^T, h B^T, dy B, dh A, and the gradients of A and B.
    """
    return 3 * rank * (inputs + outputs) / (2 * inputs * outputs)


def figures(times: Times, expected: float) -> list[str]:
    """Return the cells of a row: milliseconds of both layers, and what the second takes more."""
    seconds, busy = ({name: [turn[which] for turn in turns] for name, turns in times.items()} for which in (0, 1))
    least = {name: min(values) for name, values in seconds.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    processor = {name: statistics.median(values) for name, values in busy.items()}
    return [
        *(f"{1e3 * least[name]:.2f}" for name in ("dense", "lora")),
        *(f"{one['lora'] / one['dense'] - 1:+.1%}" for one in (least, median, processor)),
        f"{expected:+.1%}",
    ]


if __name__ == "__main__":
    typer.run(main)
