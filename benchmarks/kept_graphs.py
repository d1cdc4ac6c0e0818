"""Run `mindpet finetune` several times with one cache: what compiling costs the first run, and what the later ones.

Example: python benchmarks/kept_graphs.py --runs 3
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from worker import run_apart

PROGRAM = [sys.executable, "-m", "mindpet.cli", "finetune"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY, ROWS, LENGTH, STEPS = 21128, 8, 128, 6


def main(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="After --: flags of `mindpet finetune`, in place of LoRA on BERT-base.")
    ] = None,
    runs: Annotated[int, typer.Option(min=2, help="How many runs, each a process of its own.")] = 3,
) -> None:
    """Print compile time, step time and peak memory of each run; all must have the same losses, bit for bit."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        flags = arguments or bert_base(folder)
        results = [run(folder / f"run{number}", flags, folder / "cache") for number in range(runs)]
    table = Table("run", "compiling", "step, median", "peak memory", box=box.MARKDOWN)
    for number, (metrics, _) in enumerate(results, 1):
        table.add_row(
            str(number),
            f"{metrics['compile_seconds']:.1f} s",
            f"{metrics['step_ms_median']:.0f} ms",
            f"{metrics['peak_memory_mb']:.0f} MB",
        )
    Console(width=120).print(table)
    if any(losses != results[0][1] for _, losses in results):
        raise SystemExit("the losses of the runs differ")
    print("all runs have the same losses, bit for bit")


def bert_base(folder: Path) -> list[str]:
    """Write a BERT-base with random weights and texts of random words; return the flags of LoRA on them."""
    model, texts = folder / "model", folder / "texts.jsonl"
    run_apart(write_bert_base, model)
    words = [f"w{number}" for number in range(VOCABULARY - len(SPECIAL))]
    (model / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n", encoding="utf-8")
    generator = np.random.default_rng(0)
    # Of ten texts, eight train, one tells when to stop and one tests.
    count = ROWS * STEPS * 10 // 8
    drawn = generator.choice(words, (count, LENGTH - 2))
    lines = [json.dumps({"text": " ".join(row), "label": f"class {place % 2}"}) for place, row in enumerate(drawn)]
    texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = ["--batch-size", str(ROWS), "--max-length", str(LENGTH), "--epochs", "1"]
    return ["--model", str(model), "--data", str(texts), "--method", "lora", "--no-baselines", *sizes]


def write_bert_base(folder: Path) -> None:
    """Write the network; in a process of its own, as torch takes memory."""
    import transformers

    transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=VOCABULARY)).save_pretrained(folder)


def run(out: Path, flags: list[str], cache: Path) -> tuple[dict[str, Any], list[float]]:
    """Return the metrics of a run and its losses."""
    environment = os.environ | {"MINDPET_CACHE": str(cache), "MINDPET_GRAPHS": "keep"}
    command = [*PROGRAM, *flags, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    records = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    losses = [record["loss"] for record in records if "loss" in record]
    return json.loads((out / "metrics.json").read_text(encoding="utf-8")), losses


if __name__ == "__main__":
    typer.run(main)
