"""Compare the methods on one task: a learning rate chosen on the validation split, then the mean of several seeds.

Each run is a process of its own and leaves a JSON file, so that the benchmark can be stopped and goes on where it was.

Example: python benchmarks/methods.py runs/methods
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mindpet.train.methods import METHOD_NAMES, defaults_of

PROGRAM = [sys.executable, "-m", "mindpet.cli", "finetune"]
BASELINES = {"TF-IDF": "baseline_accuracy", "frozen BERT": "probe_accuracy"}
RATES = {
    "lora": (2e-4, 5e-4),
    "adapter": (5e-4, 1.5e-3),
    "low_rank_adapter": (2e-3, 6e-3),
    "prefixtuning": (2e-4, 5e-4, 2e-3),
    "ptuning2": (1e-2, 3e-2),
    "bitfit": (3e-3, 1e-2),
    "ia3": (1e-2, 3e-2),
    "full": (1e-4, 3e-4),
}


@dataclass(frozen=True)
class Comparison:
    """The runs of one comparison.

    Attributes:
        folder: Holds a JSON file for each finished run.
        seeds: How many seeds; the learning rate is chosen with the first.
        flags: Further flags of `mindpet finetune`.
    """

    folder: Path
    seeds: int
    flags: Sequence[str]

    def run(self, method: str, rate: float, seed: int) -> dict[str, Any]:
        """Return the metrics of a run, which is made unless it was made before."""
        out = self.folder / f"{method}-{rate:g}-{seed}"
        result = out.with_suffix(out.suffix + ".json")
        if not result.exists():
            choices = ["--method", method, "--learning-rate", str(rate), "--seed", str(seed)]
            if method != METHOD_NAMES[0]:
                choices.append("--no-baselines")
            command = [*PROGRAM, *self.flags, *choices, "--out", str(out), "--resume"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (out / "metrics.json").rename(result)
            shutil.rmtree(out)
        return json.loads(result.read_text())

    def grid(self, method: str) -> dict[float, dict[str, Any]]:
        """Return the metrics of the first seed at each learning rate."""
        return {rate: self.run(method, rate, 0) for rate in RATES.get(method, [defaults_of(method)["learning_rate"]])}

    def chosen(self, method: str) -> tuple[float, list[dict[str, Any]]]:
        """Return the rate with the best validation accuracy, the lowest among equals, and the metrics of each seed."""
        grid = self.grid(method)
        rate = max(sorted(grid), key=lambda rate: grid[rate]["valid_accuracy"])
        return rate, [self.run(method, rate, seed) for seed in range(self.seeds)]


def main(
    folder: Annotated[Path, typer.Argument(help="Holds the results of the runs, and grows as they finish.")],
    flags: Annotated[list[str] | None, typer.Argument(help="After --: flags of `mindpet finetune`.")] = None,
    methods: Annotated[str, typer.Option(help="Which ones, with commas between.")] = ",".join(METHOD_NAMES),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
) -> None:
    """Make what is missing of the runs, learning rates first, and print a report as Markdown."""
    comparison = Comparison(folder, seeds, flags or [])
    folder.mkdir(parents=True, exist_ok=True)
    names = methods.split(",")
    for method in names:
        comparison.grid(method)
    print("\n".join(report(comparison, names)))


def report(comparison: Comparison, methods: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the report."""
    first = comparison.chosen(METHOD_NAMES[0])[1]
    baselines = {name: [metrics[key] for metrics in first] for name, key in BASELINES.items()}
    against = [f"less {name}" for name in baselines]
    yield table_line("classifier", "learning rate", "trained parameters", "share", "test accuracy", *against, "step")
    yield table_line(*["---"] * 8)
    for name, accuracies in baselines.items():
        yield table_line(f"{name} + logistic regression", "", "", "", spread(accuracies), "", "", "")
    for method in methods:
        yield row(method, *comparison.chosen(method), [statistics.mean(values) for values in baselines.values()])
    yield ""
    yield table_line("method", "validation accuracy of the first seed, by learning rate")
    yield table_line("---", "---")
    for method in methods:
        grid = comparison.grid(method)
        yield table_line(method, ", ".join(f"{rate:g}: {grid[rate]['valid_accuracy']:.3f}" for rate in sorted(grid)))


def row(method: str, rate: float, runs: Sequence[dict[str, Any]], baselines: Sequence[float]) -> str:
    """Return a method's line of the table."""
    accuracies = [metrics["accuracy"] for metrics in runs]
    return table_line(
        method,
        f"{rate:g}",
        f"{runs[0]['trainable_params']:,}",
        f"{runs[0]['trainable_ratio']:.2%}",
        spread(accuracies),
        *(f"{statistics.mean(accuracies) - baseline:+.3f}" for baseline in baselines),
        f"{min(metrics['step_ms_median'] for metrics in runs):.0f} ms",
    )


def table_line(*cells: str) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    typer.run(main)
