"""Measure a training step of mindpet beside transformers + PEFT: time, first step, peak memory.

Example: python benchmarks/step_time.py --case bert-base --rounds 12
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from cases import CASES, TINY_CASES, Case, R, read_batches, tell
from rich import box
from rich.console import Console
from rich.table import Table
from worker import Turn, Worker, prepare_apart

from mindpet.utils.environment import usable_cores

SIDES = {"mindpet": "side_mindpet", "PEFT": "side_peft"}
COMPARED_LOSSES = 20
TOLERANCE = 1e-4
# Figure of a side: what it is, how it is written, in which unit, and whether a ratio says something.
FIGURES = {
    "median_s": ("step, median", "{:.1f} ms", 1e3, True),
    "min_s": ("step, minimum", "{:.1f} ms", 1e3, True),
    "processor_s": ("processor time of a step", "{:.1f} ms", 1e3, True),
    "first_step_s": ("first step", "{:.2f} s", 1, True),
    "compile_s": ("first step less a median one", "{:.2f} s", 1, False),
    "peak_mb": ("peak memory of the process", "{:.0f} MB", 1, True),
    "cores_busy": ("cores kept busy", "{:.2f}", 1, False),
    "idle_busy_s": ("processor time while waiting", "{:.2f} s", 1, False),
}

CaseName = Enum("CaseName", {name: name for name in CASES})


def main(
    case: Annotated[list[CaseName] | None, typer.Option(help="What to measure; everything by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures to.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes, only to see that the benchmark works.")] = False,
) -> None:
    """Measure a training step of mindpet beside transformers + PEFT, the two taking turns."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; install the extra: pip install -e '.[reference]'")
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    machine = describe_machine()
    cases = TINY_CASES if tiny else CASES
    names = [chosen.value for chosen in case] if case else list(cases)
    results = {name: measure(name, cases[name], rounds, steps) for name in names}
    machine["load after the run"] = load()
    print(report(machine, results))
    if json_file:
        json_file.write_text(json.dumps({"machine": machine, "cases": results}, indent=1), encoding="utf-8")
    apart = [name for name in names if not results[name]["loss_difference"] <= TOLERANCE]
    if apart:
        raise SystemExit(f"{', '.join(apart)}: the losses of the two sides differ by more than {TOLERANCE:g}")


def measure(name: str, case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Let both sides train `case`, in turns, and return the figures of both with their ratios."""
    turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
    with TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        tell(f"{name}: writing weights and batches")
        prepare_apart(case, 1 + rounds * steps, folder)
        rows, length = read_batches(folder)[0].input_ids.shape
        tell(f"{name}: loading both sides")
        workers = {side: Worker(module, folder) for side, module in SIDES.items()}
        for number in range(rounds + 1):
            tell(f"{name}: round {number} of {rounds}" if number else f"{name}: first step")
            for side, worker in workers.items():
                turns[side].append(worker.take_steps(steps if number else 1))
        sides = {side: summarise(turns[side], worker.close()) for side, worker in workers.items()}
    ours, theirs = sides.values()
    return {
        "title": f"{case.plan.title}, batch {rows} x {length} tokens, LoRA r {R} on query and value",
        "sides": sides,
        "ratios": {key: ours[key] / theirs[key] for key, (*_, compares) in FIGURES.items() if compares},
        "timed_steps": rounds * steps,
        "compared_losses": min(COMPARED_LOSSES, 1 + rounds * steps),
        "loss_difference": loss_difference(ours["losses"], theirs["losses"]),
    }


def summarise(turns: Sequence[Turn], peak_megabytes: float) -> dict[str, Any]:
    """Return the figures of one side; the first turn is the first step, which compiles or warms up."""
    first, *rest = turns
    seconds = [second for turn in rest for second in turn.seconds]
    median = statistics.median(seconds)
    return {
        "median_s": median,
        "min_s": min(seconds),
        "processor_s": min(turn.busy / len(turn.seconds) for turn in rest),
        "first_step_s": first.seconds[0],
        "compile_s": max(first.seconds[0] - median, 0.0),
        "peak_mb": peak_megabytes,
        "cores_busy": sum(turn.busy for turn in rest) / sum(seconds),
        "idle_busy_s": sum(turn.idle_busy for turn in rest),
        "seconds": seconds,
        "losses": [loss for turn in turns for loss in turn.losses],
    }


def loss_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference of the first losses; infinite or NaN when one is no number."""
    pairs = list(zip(ours, theirs, strict=True))[:COMPARED_LOSSES]
    differences = [abs(one - other) / abs(other) for one, other in pairs]
    return max(differences, key=lambda difference: (difference != difference, difference))


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on, and how busy the machine is."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    packages = ("mindpet", "mindspore", "torch", "transformers", "peft", "numpy")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{facts.get('model name', platform.processor()).strip()} ({', '.join(flags)})",
        "cores": str(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages),
        "load before the run": load(),
    }


def load() -> str:
    """Return the load average of the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def report(machine: dict[str, str], results: dict[str, dict[str, Any]]) -> str:
    """Return everything as Markdown, so that the output can be kept as a file."""
    console = Console(width=120, markup=False, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print("# A training step of mindpet beside transformers + PEFT\n")
        for fact, value in machine.items():
            console.print(f"- {fact}: {value}")
        for name, result in results.items():
            console.print(f"\n## {name}\n\n{result['title']}")
            console.print(figures_table(result))
            console.print(
                f"Largest relative difference of the first {result['compared_losses']} losses: "
                f"{result['loss_difference']:.1e}. Timed steps of each side: {result['timed_steps']}."
            )
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def figures_table(result: dict[str, Any]) -> Table:
    """Return a table with a row a figure and a column a side."""
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for heading in (*SIDES, "ratio"):
        table.add_column(heading, justify="right")
    for key, (label, form, unit, _) in FIGURES.items():
        figures = [form.format(side[key] * unit) for side in result["sides"].values()]
        ratio = result["ratios"].get(key)
        table.add_row(label, *figures, "" if ratio is None else f"{ratio:.2f}")
    return table


if __name__ == "__main__":
    typer.run(main)
