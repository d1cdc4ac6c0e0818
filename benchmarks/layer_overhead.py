"""Measure what LoRA adds to a frozen dense layer: forward and backward of accelerated layers of BERT-base's shapes.

Example: python benchmarks/layer_overhead.py --rank 8
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from worker import run_apart

from mindpet.utils.environment import usable_cores

ROWS = 1024
SHAPES = ((768, 768), (768, 3072), (3072, 768))  # inputs and outputs of the layers of BERT-base

Seconds = dict[str, list[float]]


def main(
    rank: Annotated[int, typer.Option(min=1, help="LoRA's rank.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How often each layer has its turn.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the input.")] = ROWS,
) -> None:
    """Time LoRADense beside a frozen dense layer of the same shape, with each kind of kernels, in turns."""
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    table = Table(box=box.MARKDOWN)
    for column in ("kernels", "shape", "dense, ms", "LoRA, ms", "overhead, least", "median", "arithmetic says"):
        table.add_column(column, justify="left" if column in ("kernels", "shape") else "right")
    for kind in run_apart(possible_kinds):
        for inputs, outputs in SHAPES:
            seconds = run_apart(measure, kind, rows, inputs, outputs, rank, rounds)
            table.add_row(kind, f"{inputs} to {outputs}", *figures(seconds, added_share(inputs, outputs, rank)))
    console = Console(width=160, markup=False, highlight=False, soft_wrap=True)
    console.print(f"# LoRADense of rank {rank} beside a frozen dense layer, {rows} rows, forward and backward\n")
    console.print(table)


def possible_kinds() -> tuple[str, ...]:
    """Return the kernels that this machine has."""
    from mindpet import kernels

    return kernels.possible_kernels()


def measure(kind: str, rows: int, inputs: int, outputs: int, rank: int, rounds: int) -> Seconds:
    """Return the seconds of each turn of both layers, the call of the graph included."""
    import mindspore

    from mindpet import kernels

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    kernels.use_kernels(kind)
    takes = {"dense": make_pass(rows, inputs, outputs, None), "lora": make_pass(rows, inputs, outputs, rank)}
    seconds: Seconds = {name: [] for name in takes}
    for number in range(rounds + 1):
        for name, take in takes.items():
            start = time.perf_counter()
            take()
            if number:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    return seconds


def make_pass(rows: int, inputs: int, outputs: int, rank: int | None) -> Callable[[], object]:
    """Return a function that runs a layer forward and backward, and waits for the end.

    The gradient goes to the input, as within a network, and to LoRA's parameters. The loss looks at one row only, so
    that it costs next to nothing; without a loss MindSpore would leave out a product that no gradient needs.
    """
    import mindspore
    import numpy as np
    from mindspore import Tensor, nn

    from mindpet import accelerate
    from mindpet.delta.lora import LoRADense

    class Loss(nn.Cell):
        def __init__(self, layer: nn.Cell) -> None:
            super().__init__()
            self.layer = layer

        def construct(self, x: Tensor, slopes: Tensor) -> Tensor:
            return (self.layer(x)[:1] * slopes).sum()

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
    differentiate = mindspore.value_and_grad(loss, 0, layer.trainable_params() or None)

    def take() -> object:
        value, gradients = differentiate(x, slopes)
        by_input = gradients if rank is None else gradients[0]
        return value.asnumpy(), by_input.asnumpy()  # the call alone may return before the graph is done

    return take


def added_share(inputs: int, outputs: int, rank: int) -> float:
    """Return the multiplications that LoRA adds, as a share of those of the frozen layer.

    The layer takes two products of inputs * outputs a row, x W^T and dy W; the branch takes six with a factor of rank:
    x A^T, h B^T, dy B, dh A, and the gradients of A and B.
    """
    return 3 * rank * (inputs + outputs) / (2 * inputs * outputs)


def figures(seconds: Seconds, expected: float) -> list[str]:
    """Return the cells of a row: milliseconds of both layers, and what the second takes more."""
    least = {name: min(values) for name, values in seconds.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        *(f"{1e3 * least[name]:.2f}" for name in ("dense", "lora")),
        *(f"{one['lora'] / one['dense'] - 1:+.1%}" for one in (least, median)),
        f"{expected:+.1%}",
    ]


if __name__ == "__main__":
    typer.run(main)
