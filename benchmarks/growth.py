"""Measure how the cost of a LoRA step grows: batch, length, layers, rank and threads, mindpet beside PEFT.

Example: python benchmarks/growth.py --plot growth.svg
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import typer
from cases import CASES, grown, prepare, tell
from rich import box
from rich.console import Console
from rich.table import Table
from step_time import SIDES, sides_of
from worker import Turn, Worker, run_apart

from mindpet.utils.environment import usable_cores

MEASURED = tuple(side for side in sides_of("bert-base", "lora") if SIDES[side].everywhere)


class Size(NamedTuple):
    """The size of a network and its batches; of BERT-base with fewer layers, so that all fits into some minutes."""

    batch: int = 8
    length: int = 128
    layers: int = 4
    rank: int = 8
    threads: int = usable_cores()


VARIED = {
    "batch": (2, 8, 32),
    "length": (32, 128, 512),
    "layers": (2, 4, 8, 12),
    "rank": (1, 8, 64),
    "threads": tuple(sorted({1, usable_cores()})),
}
Axis = Enum("Axis", {name: name for name in VARIED})


class Point(NamedTuple):
    """One size along one axis: the least step and the peak of memory, by side."""

    axis: str
    value: int
    milliseconds: dict[str, float]
    megabytes: dict[str, float]


def main(
    axis: Annotated[list[Axis] | None, typer.Option(help="What to vary; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 2,
    plot: Annotated[Path | None, typer.Option(help="File to draw to, .svg or .png.")] = None,
) -> None:
    """Measure BERT-base with 4 layers and other sizes of it, print a table and draw it."""
    points = []
    for name in [one.value for one in axis] if axis else VARIED:
        for value in VARIED[name]:
            tell(f"{name} {value}")
            points.append(measure(name, Size(**{name: value}), rounds, steps))
    print(report(points))
    if plot:
        draw(points, plot)


def measure(axis: str, size: Size, rounds: int, steps: int) -> Point:
    """Let all sides take steps of one size in turns."""
    os.environ["OMP_NUM_THREADS"] = str(size.threads)
    case = grown(CASES["bert-base"], size.batch, size.length, size.layers, size.rank)
    with TemporaryDirectory() as name:
        folder = Path(name)
        run_apart(prepare, case, 1 + rounds * steps, folder)
        workers = {side: Worker(SIDES[side].module, folder, SIDES[side].options) for side in MEASURED}
        turns: dict[str, list[Turn]] = {side: [] for side in workers}
        for number in range(rounds + 1):
            for side, worker in workers.items():
                turns[side].append(worker.take_steps(steps if number else 1))
        megabytes = {side: worker.close() for side, worker in workers.items()}
    least = {side: 1e3 * min(second for turn in taken[1:] for second in turn.seconds) for side, taken in turns.items()}
    return Point(axis, getattr(size, axis), least, megabytes)


def report(points: list[Point]) -> str:
    """Return the table as Markdown."""
    table = Table(box=box.MARKDOWN)
    table.add_column("varied")
    for side in MEASURED:
        table.add_column(f"{side}, ms", justify="right")
    for side in MEASURED:
        table.add_column(f"{side}, MB", justify="right")
    for point in points:
        milliseconds = (f"{point.milliseconds[side]:.0f}" for side in MEASURED)
        megabytes = (f"{point.megabytes[side]:.0f}" for side in MEASURED)
        table.add_row(f"{point.axis} {point.value}", *milliseconds, *megabytes)
    console = Console(width=160, markup=False, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print("# How the cost of a LoRA step grows\n")
        console.print(
            f"BERT-base with 4 layers, batch 8 x 128, rank 8, {usable_cores()} threads, unless said otherwise\n"
        )
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def draw(points: list[Point], file: Path) -> None:
    """Draw time and memory over each axis."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(3.2 * len(axes), 6), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        along = [point for point in points if point.axis == axis]
        for side in MEASURED:
            values = [point.value for point in along]
            grid[0][column].plot(values, [point.milliseconds[side] for point in along], marker="o", label=side)
            grid[1][column].plot(values, [point.megabytes[side] for point in along], marker="o", label=side)
        for row, unit in zip(grid, ("ms a step", "MB at most"), strict=True):
            row[column].set(xlabel=axis, ylabel=unit, ylim=(0, None))
    grid[0][0].legend()
    figure.savefig(file)


if __name__ == "__main__":
    typer.run(main)
