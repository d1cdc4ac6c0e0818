"""Make the conformance set anew: `python conformance/generate.py`. Needs MindPet with its extra `reference`.

Bases and adapters come out bit for bit as before with the same versions of the libraries, but for those that are made
by a decomposition or a long sum, and the expected logits, whose last digits depend on the processor.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import transformers
from libraries.peft import logits
from making import by_mindpet, by_peft, damaged
from making.bases import BASES, INPUTS, make_base
from making.case import Case, inputs_of

ROOT = Path(__file__).resolve().parent
PARTS = ("bases", "inputs", "adapters", "expected")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the conformance set anew.")
    parser.add_argument("--folder", type=Path, default=ROOT, help="where to write; by default where the set stands")
    folder = parser.parse_args(arguments).folder
    if folder.exists() and any(folder.iterdir()) and not (folder / "cases.json").exists():
        parser.error(f"{folder} holds something else; name a new folder, or one with a conformance set to replace")
    torch.set_num_threads(1)  # so that sums are added up in one order
    with tempfile.TemporaryDirectory() as made:
        make_set(Path(made))
        for part in PARTS:
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(Path(made) / part, folder / part)
        shutil.copyfile(Path(made) / "cases.json", folder / "cases.json")


def make_set(folder: Path) -> None:
    """Write everything into an empty folder."""
    for part in PARTS:
        (folder / part).mkdir()
    for name, content in INPUTS.items():
        write_json(folder / "inputs" / f"{name}.json", content)
    for name in BASES:
        make_base(name, folder / "bases" / name)
    for case, fields in by_peft.ADAPTERS.items():
        by_peft.make(case, fields, folder / "bases", folder / "adapters" / case.name, read_inputs(case.base))
    for case, config in by_mindpet.ADAPTERS.items():
        by_mindpet.make(case, config, folder / "bases", folder / "adapters" / case.name)
    for damage in damaged.DAMAGES:
        damaged.make(damage, folder / "adapters")
    cases = [plain_case(name) for name in BASES]
    cases += [*by_peft.ADAPTERS, *by_mindpet.ADAPTERS, *(damage.case for damage in damaged.DAMAGES)]
    for case in cases:
        if case.reason is None:
            adapter = None if case.method == "none" else folder / "adapters" / case.name
            write_logits(folder / "expected" / f"{case.name}.json", folder / "bases" / case.base, adapter)
    made_with = {one.__name__: one.__version__ for one in (torch, transformers, safetensors)}
    manifest = {"version": 1, "made_with": made_with, "cases": [case.describe() for case in cases]}
    write_json(folder / "cases.json", manifest)


def plain_case(base: str) -> Case:
    """Return the case of a base without an adapter."""
    origin = f"transformers {transformers.__version__}"
    return Case(base, "none", "the base by itself", base, origin, "the base model, before any adapter is judged")


def read_inputs(base: str) -> dict[str, np.ndarray]:
    """Return what a base is run on."""
    return {name: np.array(rows, np.int32) for name, rows in INPUTS[inputs_of(base)].items()}


def write_logits(file: Path, base: Path, adapter: Path | None) -> None:
    """Write what transformers and PEFT compute, each number with as many digits as tell it from its neighbours."""
    found = logits(base, adapter, read_inputs(base.name))
    rows = np.array([float(str(number)) for number in found.flat]).reshape(found.shape)
    write_json(file, {"dtype": str(found.dtype), "shape": list(found.shape), "logits": rows.tolist()})


def write_json(file: Path, content: Any) -> None:
    """Write JSON with each row of numbers on one line."""
    text = json.dumps(content, indent=1)
    rows = re.sub(r"\[\s+(-?\d[^\[\]{}\"]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    file.write_text(rows + "\n", "utf-8")


if __name__ == "__main__":
    main()
