"""Say where the time of mindpet's training step goes, by operation.

Example: python benchmarks/profile_ops.py --case bert-base --method lora --kernels bf16
"""

from __future__ import annotations

import csv
import os
import re
import time
from collections import defaultdict
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from cases import CASES, TINY_CASES, prepare, tell
from plan import METHODS, read_batches, read_plan
from rich import box
from rich.console import Console
from rich.table import Table
from worker import run_apart

from mindpet.utils.environment import usable_cores

CaseName = Enum("CaseName", {name: name for name in CASES})
MethodName = Enum("MethodName", {name: name for name in METHODS})
Kind = Enum("Kind", {name: name for name in ("off", "f32", "bf16")})

Times = dict[tuple[str, str], tuple[float, float]]


def main(
    case: Annotated[CaseName, typer.Option(help="The network.")] = CaseName["bert-base"],
    method: Annotated[MethodName, typer.Option(help="The method.")] = MethodName["lora"],
    kernels: Annotated[Kind, typer.Option(help="The kernels.")] = Kind["f32"],
    steps: Annotated[int, typer.Option(min=1, help="Profiled steps.")] = 3,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes, only to see that it works.")] = False,
) -> None:
    """Profile some steps in graph mode, and print time and calls of each kind of operation."""
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    source = (TINY_CASES if tiny else CASES)[case.value].with_method(method.value)
    with TemporaryDirectory() as name:
        folder = Path(name)
        tell("writing weights and batches")
        run_apart(prepare, source, 2 + steps, folder)
        times, whole = run_apart(profile_steps, folder, kernels.value, steps)
    print(report(f"{case.value}, {method.value}, {kernels.value}", times, whole))


def profile_steps(folder: Path, kind: str, steps: int) -> tuple[Times, float]:
    """Return milliseconds and calls a step, by operation and direction, and the milliseconds of a whole step.

    Layers are compiled as they are: as blocks they would be one operation, of which nothing more could be said.
    """
    from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler
    from side_mindpet import build_step, compile_layers_as_they_are

    compile_layers_as_they_are()
    step, batches = build_step(folder, read_plan(folder), kind), read_batches(folder)
    tell("compiling")
    step(batches[0])
    seconds = []
    written = folder / "profile"
    with profile(activities=[ProfilerActivity.CPU], on_trace_ready=tensorboard_trace_handler(str(written))) as profiler:
        for number in range(steps):
            start = time.perf_counter()
            step(batches[number % len(batches)])
            seconds.append(time.perf_counter() - start)
            profiler.step()
    return read_times(written, steps), 1e3 * sum(seconds) / steps


def read_times(folder: Path, steps: int) -> Times:
    """Add up what the profiler has written about each operation."""
    times: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for file in folder.rglob("cpu_op_detail_info_*.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                entry = times[name_of(row["full_op_name"], row["op_type"])]
                entry[0] += float(row["op_total_time(ms)"]) / steps
                entry[1] += float(row["op_occurrences"]) / steps
    return {key: (total, calls) for key, (total, calls) in times.items()}


def name_of(full_name: str, kind: str) -> tuple[str, str]:
    """Return what an operation belongs to, with its direction: of a native one the cell, of others their own kind."""
    if "optimizer-" in full_name:
        return "optimizer", ""
    direction = "backward" if full_name.startswith("Gradients/") else "forward"
    cells = re.findall(r"-([A-Z]\w+)/", full_name)
    owner = cells[-1] if cells else "step"
    return (f"{owner}, native" if kind == "Custom" else f"{owner}, {kind}"), direction


def report(title: str, times: Times, whole: float) -> str:
    """Return the table as Markdown, the longest first."""
    table = Table(box=box.MARKDOWN)
    for heading in ("operation", "", "calls", "ms a step", "share"):
        table.add_column(heading, justify="left" if heading in ("operation", "") else "right")
    known = sum(total for total, _ in times.values())
    for (owner, direction), (total, calls) in sorted(times.items(), key=lambda item: -item[1][0]):
        if total >= whole / 1000:
            table.add_row(owner, direction, f"{calls:.0f}", f"{total:.1f}", f"{total / whole:.1%}")
    table.add_row("between operations", "", "", f"{whole - known:.1f}", f"{1 - known / whole:.1%}")
    console = Console(width=120, markup=False, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print(f"# {title}: {whole:.0f} ms a step\n")
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


if __name__ == "__main__":
    typer.run(main)
