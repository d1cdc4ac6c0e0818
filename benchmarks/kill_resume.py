"""Kill a fine-tuning run again and again with SIGKILL, resume it each time, and compare it with an undisturbed one.

Example: python benchmarks/kill_resume.py --kills 50 -- --lora-dropout 0.1 --save-steps 5
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from safetensors.numpy import load_file

from mindpet.train.record import TIMES

PROGRAM = [sys.executable, "-m", "mindpet.cli", "finetune"]
CHECKED = ("accuracy", "valid_accuracy", "skipped_steps", "trainable_params", "baseline_accuracy", "probe_accuracy")


def main(
    arguments: Annotated[list[str] | None, typer.Argument(help="After --: flags of `mindpet finetune`.")] = None,
    kills: Annotated[int, typer.Option(min=1, help="How often to kill the run.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Say whether a run that is killed and resumed ends as one that is left alone, bit for bit."""
    with TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        flags = arguments or []
        run(whole, flags)
        moments = run_with_kills(killed, flags, kills, seed, steps=last_step(whole))
        differences = compare(whole, killed)
    print(f"{len(moments)} kills, after steps {', '.join(map(str, moments))}")
    if differences:
        raise SystemExit("the killed run differs: " + "; ".join(differences))
    print("parameters, optimizer state, losses and accuracies are the same, bit for bit")


def run(out: Path, flags: Sequence[str]) -> None:
    """Run to the end; going on where a run was left."""
    subprocess.run([*PROGRAM, *flags, "--out", str(out), "--resume"], check=True, stdout=subprocess.DEVNULL)


def run_with_kills(out: Path, flags: Sequence[str], kills: int, seed: int, steps: int) -> list[int]:
    """Start the run, kill it and start it again, `kills` times, and then let it end.

    The kills are spread over the first nine tenths of the run's `steps`. Each process is killed when it has made steps
    of its own and come to a random place, after a random time of up to 10 ms.

    Returns:
        The last step in the log at each kill.
    """
    generator = random.Random(seed)
    moments = []
    for number in range(kills):
        target = 0.9 * steps * (number + generator.random()) / kills
        earlier = identity(out)
        with subprocess.Popen([*PROGRAM, *flags, "--out", str(out), "--resume"], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and (identity(out) == earlier or last_step(out) < target):
                time.sleep(0.0005)
            time.sleep(0.01 * generator.random())
            process.kill()
        if process.returncode != -9:
            raise SystemExit(f"ended by itself with exit code {process.returncode} before kill {number + 1}")
        moments.append(last_step(out))
    run(out, flags)
    return moments


def identity(out: Path) -> int:
    """Return what tells a run's log from the one that a later part of the run has cut back; 0 without a log."""
    log = out / "log.jsonl"
    return log.stat().st_ino if log.exists() else 0


def last_step(out: Path) -> int:
    """Return the number of the newest step in a run's log, 0 without one."""
    log = out / "log.jsonl"
    lines = log.read_bytes().splitlines()[-3:] if log.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith(b"}")]
    return steps[-1] if steps else 0


def compare(one: Path, other: Path) -> list[str]:
    """Return what differs between two finished runs."""
    differences = []
    if log_without_times(one) != log_without_times(other):
        differences.append("the log")
    metrics, others = (json.loads((folder / "metrics.json").read_text()) for folder in (one, other))
    differences += [name for name in CHECKED if metrics[name] != others[name]]
    values, others = (load_file(folder / "resume.safetensors") for folder in (one, other))
    names = sorted(values.keys() | others.keys())
    return differences + [
        name for name in names if name not in values or name not in others or not same(values[name], others[name])
    ]


def log_without_times(out: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log without what depends on the clock."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two arrays have the same dtype, shape and bits."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


if __name__ == "__main__":
    typer.run(main)
