"""Measure how long MindSpore compiles the graph of a training step, each time in a new process.

Example: python benchmarks/compile_time.py --case bert-base --method lora
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from cases import CASES, TINY_CASES, prepare, tell
from plan import read_batches, read_plan
from rich import box
from rich.console import Console
from rich.table import Table
from step_time import CaseName, MethodName, choose
from worker import run_apart

from mindpet.utils.environment import usable_cores


def main(
    case: Annotated[list[CaseName] | None, typer.Option(help="The networks; all by default.")] = None,
    method: Annotated[list[MethodName] | None, typer.Option(help="The methods; by default those of the table.")] = None,
    runs: Annotated[int, typer.Option(min=1, help="Processes for each figure.")] = 3,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny networks, only to see that it works.")] = False,
) -> None:
    """Print for each network and method how long its graph is compiled, with layers as blocks and without."""
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    table = Table(box=box.MARKDOWN)
    for column in ("network", "method", "layers as blocks"):
        table.add_column(column)
    for column in ("compiling, least", "median", "layers as they are, least", "median"):
        table.add_column(column, justify="right")
    for name, way in choose(case, method):
        table.add_row(name, way, *figures((TINY_CASES if tiny else CASES)[name].with_method(way), runs))
    console = Console(width=160, markup=False, highlight=False, soft_wrap=True)
    console.print("# Compiling the graph of a training step, kernels f32\n")
    console.print(table)


def figures(case: Any, runs: int) -> list[str]:
    """Return the cells of a row but for its names."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tell(f"{case.plan.title}: writing weights and batches")
        run_apart(prepare, case, 1, folder)
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(runs):
            for with_blocks, seconds in taken.items():
                layers, compiling = run_apart(measure, folder, with_blocks)
                seconds.append(compiling)
    cells = [f"{function(seconds):.1f} s" for seconds in taken.values() for function in (min, statistics.median)]
    return [str(layers), *cells]


def measure(folder: Path, with_blocks: bool) -> tuple[int, float]:
    """Return how many layers can be blocks, and the seconds in which the graph of the first step is compiled."""
    from side_mindpet import compile_layers_as_they_are, make_step

    from mindpet.train.blocks import Blocks

    if not with_blocks:
        compile_layers_as_they_are()
    step = make_step(folder, read_plan(folder), "f32", graph=True)
    compile_graph, seconds = step.cell.compile, []

    def timed(*inputs: Any, **settings: Any) -> Any:
        start = time.perf_counter()
        result = compile_graph(*inputs, **settings)
        seconds.append(time.perf_counter() - start)
        return result

    object.__setattr__(step.cell, "compile", timed)  # what a cell calls before it runs
    step(read_batches(folder)[0])
    return len(Blocks(step.cell.network, step.cell.weights)), seconds[0]


if __name__ == "__main__":
    typer.run(main)
