"""Measure a training step of mindpet beside transformers + PEFT: time, compilation, peak memory.

Example: python benchmarks/step_time.py --case bert-base --method lora --rounds 12
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from cases import CASES, TINY_CASES, Case, prepare, tell
from plan import METHODS, read_batches
from rates import product_rates
from rich import box
from rich.console import Console
from rich.table import Table
from worker import Turn, Worker, run_apart

from mindpet.utils.environment import usable_cores

COMPARED_LOSSES = 20
MINDPET_1 = Path(__file__).parents[1] / ".venv-mindpet-1"


@dataclass(frozen=True)
class Side:
    """Who takes the steps.

    Attributes:
        module: What builds the step.
        options: For its `build_step`.
        tolerance: How far its first losses may be from those of PEFT in float32, relatively; None where that says
            nothing about mindpet.
        everywhere: Whether it is measured in every case and with every method, or only if it is named.
        python: The interpreter of an environment of its own, which `make old-mindpet` makes.
    """

    module: str
    options: dict[str, Any]
    tolerance: float | None
    everywhere: bool = True
    python: Path | None = None


REFERENCE, REFERENCE_BF16 = "PEFT f32", "PEFT bf16"
SIDES = {
    "mindpet f32": Side("side_mindpet", {"kind": "f32"}, 1e-4),
    "mindpet bf16": Side("side_mindpet", {"kind": "bf16"}, 5e-3),
    "mindpet plain": Side("side_mindpet", {"kind": "off"}, 1e-4, everywhere=False),
    "mindpet f32 PyNative": Side("side_mindpet", {"kind": "f32", "graph": False}, 1e-4, everywhere=False),
    REFERENCE: Side("side_peft", {}, None),
    REFERENCE_BF16: Side("side_peft", {"brain": True}, None),
    "PEFT f32 compiled": Side("side_peft", {"compiled": True}, None, everywhere=False),
    "PEFT bf16 compiled": Side("side_peft", {"brain": True, "compiled": True}, None, everywhere=False),
    "MindPet 1.0.4": Side("side_mindpet_1", {}, 1e-4, everywhere=False, python=MINDPET_1 / "bin" / "python"),
}
# What is measured when nothing is named: each method on BERT-base, LoRA on the others, all sides on the first.
DEFAULT = [("bert-base", method) for method in METHODS] + [("headlines", "lora"), ("smollm2", "lora")]
# Figure of a side: what it is, how it is written, in which unit.
FIGURES = {
    "min_s": ("step, minimum", "{:.0f} ms", 1e3),
    "median_s": ("step, median", "{:.0f} ms", 1e3),
    "processor_s": ("processor time of a step", "{:.0f} ms", 1e3),
    "compile_s": ("first step less a median one", "{:.1f} s", 1),
    "peak_mb": ("peak memory", "{:.0f} MB", 1),
}

CaseName = Enum("CaseName", {name: name for name in CASES})
MethodName = Enum("MethodName", {name: name for name in METHODS})
SideName = Enum("SideName", {name: name for name in SIDES})


def main(
    case: Annotated[list[CaseName] | None, typer.Option(help="The networks; all by default.")] = None,
    method: Annotated[list[MethodName] | None, typer.Option(help="The methods; by default those of the table.")] = None,
    side: Annotated[list[SideName] | None, typer.Option(help="Who takes part; by default those of the table.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side has its turn.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a turn.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="File to write all figures to.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Tiny shapes, only to see that the benchmark works.")] = False,
) -> None:
    """Measure a training step of mindpet beside transformers + PEFT, the sides taking turns."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing: {', '.join(missing)}; install the extra: pip install -e '.[reference]'")
    os.environ["OMP_NUM_THREADS"] = str(usable_cores())
    machine = describe_machine()
    chosen = choose(case, method)
    results = {}
    for name, way in chosen:
        sides = [one.value for one in side] if side else sides_of(name, way)
        source = (TINY_CASES if tiny else CASES)[name].with_method(way)
        results[f"{name}, {way}"] = measure(f"{name}, {way}", source, sides, rounds, steps)
    machine["load after the run"] = load()
    print(report(machine, results))
    if json_file:
        json_file.write_text(json.dumps({"machine": machine, "results": results}, indent=1), encoding="utf-8")
    apart = [f"{name}: {side}" for name, result in results.items() for side in result["apart"]]
    if apart:
        raise SystemExit(f"the losses are further from those of {REFERENCE} than allowed: {'; '.join(apart)}")


def choose(cases: Sequence[Any] | None, methods: Sequence[Any] | None) -> list[tuple[str, str]]:
    """Return what is to be measured: the pairs of DEFAULT with these names, or all pairs where both are named."""
    if cases and methods:
        return [(case.value, method.value) for case in cases for method in methods]
    wanted = {one.value for one in (*(cases or ()), *(methods or ()))}
    return [pair for pair in DEFAULT if not wanted or wanted & set(pair)]


def sides_of(case: str, method: str) -> list[str]:
    """Return the sides of the default table.

    Those in bfloat16 are left out where the processor does not multiply it: a step of torch takes minutes there.
    """
    brain = {"avx512_bf16", "amx_bf16"} & set(processor()[1])
    chosen = [name for name, side in SIDES.items() if side.everywhere or (case, method) == DEFAULT[0]]
    return [name for name in chosen if brain or "bf16" not in name]


def measure(name: str, case: Case, sides: Sequence[str], rounds: int, steps: int) -> dict[str, Any]:
    """Let all sides train `case`, in turns, and return the figures of each."""
    with TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        tell(f"{name}: writing weights and batches")
        run_apart(prepare, case, 1 + rounds * steps, folder)
        batches = read_batches(folder)
        workers, failed = start(name, sides, folder)
        turns: dict[str, list[Turn]] = {side: [] for side in workers}
        for number in range(rounds + 1):
            tell(f"{name}: round {number} of {rounds}" if number else f"{name}: first steps")
            for side, worker in list(workers.items()):
                try:
                    turns[side].append(worker.take_steps(steps if number else 1))
                except RuntimeError as error:
                    failed[side] = str(error)
                    del workers[side]
        figures = {
            side: summarise(turns[side], worker.close()) | {"versions": worker.versions}
            for side, worker in workers.items()
        }
    differences = compare(figures)
    rows, length = batches[0].input_ids.shape
    return {
        "title": f"{case.plan.title}, batch {rows} x {length}, {case.plan.method}",
        "sides": figures,
        "failed": failed,
        "padding": float(np.mean([1 - batch.attention_mask.mean() for batch in batches])),
        "timed_steps": rounds * steps,
        "loss_differences": differences,
        "apart": [side for side, far in differences.items() if not far <= (SIDES[side].tolerance or math.inf)],
    }


def start(name: str, sides: Sequence[str], folder: Path) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start a process for each side; return those that work, and what is wrong with the others."""
    workers, failed = {}, {}
    for side in sides:
        tell(f"{name}: loading {side}")
        python = SIDES[side].python
        if python and not python.exists():
            failed[side] = f"there is no {python.relative_to(MINDPET_1.parent)}; `make old-mindpet` makes it"
            continue
        try:
            workers[side] = Worker(SIDES[side].module, folder, SIDES[side].options, python)
        except RuntimeError as error:
            failed[side] = str(error)
    return workers, failed


def compare(figures: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Return how far the losses of each side are from those of PEFT in float32, where that takes part."""
    if REFERENCE not in figures:
        return {}
    theirs = figures[REFERENCE]["losses"]
    return {side: loss_difference(one["losses"], theirs) for side, one in figures.items() if side != REFERENCE}


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
    model, flags = processor()
    packages = ("mindpet", "mindspore", "torch", "transformers", "peft", "numpy")
    rates = run_apart(product_rates)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{model} ({', '.join(flags)})",
        "cores": str(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages),
        "rate of a product (1024 x 768) (768 x 3072)": ", ".join(f"{who} {rate:.0f}" for who, rate in rates.items())
        + " GFLOP/s",
        "load before the run": load(),
    }


def processor() -> tuple[str, list[str]]:
    """Return the name of the processor and which of the instruction sets that matter it has."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    facts = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    known = facts.get("flags", "").split()
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known]
    return facts.get("model name", platform.processor()).strip(), flags


def load() -> str:
    """Return the load average of the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


def report(machine: dict[str, str], results: dict[str, dict[str, Any]]) -> str:
    """Return everything as Markdown, so that the output can be kept as a part of a file."""
    console = Console(width=160, markup=False, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print("# A training step of mindpet beside transformers + PEFT\n")
        for fact, value in machine.items():
            console.print(f"- {fact}: {value}")
        for name, result in results.items():
            console.print(f"\n## {name}\n\n{result['title']}, {result['padding']:.0%} padding\n")
            console.print(figures_table(result))
            for side, figures in result["sides"].items():
                if SIDES[side].python:
                    versions = ", ".join(f"{package} {version}" for package, version in figures["versions"].items())
                    console.print(f"{side} runs in an environment of its own: {versions}.")
            for side, problem in result["failed"].items():
                console.print(f"{side} does not run: {problem}")
            apart = ", ".join(f"{side} {far:.1e}" for side, far in result["loss_differences"].items())
            if apart:
                console.print(f"Largest relative difference of the first losses from those of {REFERENCE}: {apart}.")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def figures_table(result: dict[str, Any]) -> Table:
    """Return a table with a row a side: its figures, and its time and memory as shares of PEFT's."""
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for label, *_ in FIGURES.values():
        table.add_column(label, justify="right")
    references = [side for side in (REFERENCE, REFERENCE_BF16) if side in result["sides"]]
    for reference in references:
        table.add_column(f"time / {reference}", justify="right")
        table.add_column(f"memory / {reference}", justify="right")
    for side, figures in result["sides"].items():
        cells = [form.format(figures[key] * unit) for key, (_, form, unit) in FIGURES.items()]
        for reference in references:
            others = result["sides"][reference]
            cells += [f"{figures[key] / others[key]:.2f}" for key in ("min_s", "peak_mb")]
        table.add_row(side, *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
