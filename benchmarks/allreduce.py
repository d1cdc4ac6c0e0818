"""Count what two ranks of a data-parallel fine-tuning send each other in a step, for each method.

Example: python benchmarks/allreduce.py --method lora --method full
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mindpet.train.launch import follow_the_launcher, launch

METHODS = ("lora", "bitfit", "full")
RANKS = 2
STEPS = 10
ITEM_BYTES = {"Float32": 4, "Float16": 2, "BFloat16": 2}
# An AllReduce in MindSpore's text of a compiled graph: dtype and shape of what goes in.
ALL_REDUCE = re.compile(r"= AllReduce\(.*\n\s*: \(<Tensor\[(\w+)\], \(([\d, ]*)\)")


def main(
    method: Annotated[list[str] | None, typer.Option(help="What to train; lora, bitfit and full by default.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder of a BERT; all-MiniLM-L6-v2 by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="Texts; the headlines of BBC News by default.")] = None,
    result: Annotated[Path | None, typer.Option(hidden=True, help="Where a rank writes its figures.")] = None,
) -> None:
    """Print the bytes that are all-reduced in a step, and compare them with the trained parameters."""
    methods = method or list(METHODS)
    if result is not None:
        follow_the_launcher()
        measure(methods[0], model, data, result)
        return
    figures = [measure_apart(name, model, data) for name in methods]
    show(figures)
    wrong = [figure["method"] for figure in figures if figure["reduced_bytes"] != figure["trained_bytes"]]
    if wrong:
        raise SystemExit(f"not exactly the trained parameters are all-reduced with {', '.join(wrong)}")


def measure_apart(method: str, model: Path | None, data: Path | None) -> dict[str, Any]:
    """Let new processes measure one method."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        places = {"--model": model, "--data": data, "--result": result}
        flags = [text for flag, place in places.items() if place is not None for text in (flag, str(place))]
        if launch([sys.executable, __file__, "--method", method, *flags], RANKS):
            raise SystemExit(f"the ranks have failed with {method}")
        return json.loads(result.read_text(encoding="utf-8"))


def measure(method: str, model: Path | None, data: Path | None, result: Path) -> None:
    """Take steps as a rank; the first rank writes what it has counted."""
    import mindspore

    from mindpet.train.optimizer import build_optimizer
    from mindpet.train.prepare import is_head, prepare
    from mindpet.train.run_folder import RunFolder
    from mindpet.train.settings import FinetuneSettings
    from mindpet.train.step import TrainStep

    settings = FinetuneSettings(method=method, model=model, data=data, devices=RANKS, baselines=False)
    job = prepare(settings, RunFolder(result.parent / "no_run", overwrite=False), Console(quiet=True))
    optimizer = build_optimizer(
        job.network,
        steps=STEPS + 1,
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        warmup_ratio=0.1,
        weight_decay=0.0,
        is_head=is_head,
    )
    step = TrainStep(job.network, optimizer, scale_loss=False, ranks=job.ranks)
    batch = next(iter(job.encoded.train.epoch(0)))
    graphs = result.parent / f"graphs_{job.ranks.number}"
    mindspore.set_context(save_graphs=1, save_graphs_path=str(graphs))
    step(batch)
    mindspore.set_context(save_graphs=0)
    before = written_bytes()
    for _ in range(STEPS):
        step(batch)
    written = written_bytes() - before
    if job.ranks.is_first:
        trained = job.network.trainable_params()
        reduced = reduced_tensors(graphs)
        figures = {
            "method": method,
            "trained_tensors": len(trained),
            "trained_bytes": sum(parameter.size * parameter.itemsize for parameter in trained),
            "reduced_tensors": len(reduced),
            "reduced_bytes": sum(reduced),
            "written_bytes": written / STEPS,
        }
        result.write_text(json.dumps(figures), encoding="utf-8")
    job.ranks.meet()


def reduced_tensors(graphs: Path) -> list[int]:
    """Return the bytes of each tensor that an AllReduce of the training step's compiled graph receives."""
    texts = [file.read_text(encoding="utf-8") for file in graphs.rglob("*validate*.ir")]
    steps = [text for text in texts if "grad_reducer" in text]
    if len(steps) != 1:
        raise SystemExit(f"{len(steps)} graphs of a training step were found in {graphs}; expected one")
    return [size_of(*found) for found in ALL_REDUCE.findall(steps[0])]


def size_of(dtype: str, shape: str) -> int:
    """Return the bytes of a tensor, from the names that MindSpore gives its dtype and shape in a graph."""
    return ITEM_BYTES[dtype] * math.prod(int(length) for length in shape.split(",") if length.strip())


def written_bytes() -> int:
    """Return what this process has written so far, to its sockets above all; Linux counts it."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.partition(":")[2] for line in lines if line.startswith("wchar")))


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(box=box.MARKDOWN)
    table.add_column("method")
    for heading in ("trained", "all-reduced in a step", "share of full", "written by a rank in a step"):
        table.add_column(heading, justify="right")
    full = next((figure["reduced_bytes"] for figure in figures if figure["method"] == "full"), None)
    for figure in figures:
        table.add_row(
            figure["method"],
            f"{figure['trained_bytes']:,} bytes in {figure['trained_tensors']} tensors",
            f"{figure['reduced_bytes']:,} bytes in {figure['reduced_tensors']} tensors",
            "-" if full is None else f"{figure['reduced_bytes'] / full:.2%}",
            f"{figure['written_bytes']:,.0f} bytes",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
