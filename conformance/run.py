"""Run the conformance set through a library: `python conformance/run.py --library mindpet`.

A library is a Python file with a function `logits`; README.md beside this file says how to write one. Needs NumPy only,
and what the library imports.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent
LIBRARIES = ROOT / "libraries"


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        case: Its name.
        outcome: 'logits', or for a damaged adapter 'refused' or 'loaded'; 'error' where the library has failed.
        difference: The largest absolute difference from the expected logits; None where there are none to compare.
        tolerance: The largest that is allowed.
        passed: None where it is not judged: the library does not say how it refuses.
        message: What the library has said.
    """

    case: str
    outcome: str
    difference: float | None
    tolerance: float | None
    passed: bool | None
    message: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if no case has failed, else 1."""
    cases = {case["name"]: case for case in read_cases()}
    parser = argparse.ArgumentParser(description="Run the conformance set through a library.")
    parser.add_argument("--library", required=True, help="mindpet, peft, or the path of a Python file")
    parser.add_argument("--case", action="append", help="the name of a case; may be given several times")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.case or ()) - cases.keys()):
        parser.error(f"there is no case {unknown[0]!r}; the cases are {', '.join(cases)}")
    try:
        library = load_library(options.library)
    except FileNotFoundError as error:
        parser.error(str(error))
    results = [run_case(library, cases[name]) for name in options.case or cases]
    print(json.dumps([asdict(one) for one in results], indent=2) if options.json else format_table(results))
    return int(any(one.passed is False for one in results))


def read_cases() -> list[dict[str, Any]]:
    """Return the cases of the manifest."""
    return _read_json("cases.json")["cases"]


def load_library(name: str) -> ModuleType:
    """Import a library by the name of a file in `libraries`, or by a path.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(name) if name.endswith(".py") else LIBRARIES / f"{name}.py"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in LIBRARIES.glob("*.py")))
        raise FileNotFoundError(f"there is no library {path}; give one of {known}, or the path of a Python file")
    spec = importlib.util.spec_from_file_location(f"conformance_library_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_case(library: ModuleType, case: Mapping[str, Any]) -> Result:
    """Run one case of the manifest."""
    return (_run_damaged if case["expect"] == "refuse" else _run_sound)(library, case)


def _run_sound(library: ModuleType, case: Mapping[str, Any]) -> Result:
    inputs, tolerance = read_inputs(case), case["tolerance"]
    try:
        found = _logits(library, case, inputs)
    except Exception as error:
        return Result(case["name"], "error", None, tolerance, False, _describe(error))
    expected = read_logits(ROOT / case["expected"])
    if found.shape != expected.shape:
        message = f"the logits have the shape {list(found.shape)} and not {list(expected.shape)}"
        return Result(case["name"], "logits", None, tolerance, False, message)
    difference = float(np.abs(found - expected)[counted(expected, inputs)].max())
    if not np.isfinite(difference):
        return Result(case["name"], "logits", None, tolerance, False, "the logits hold NaN or infinite numbers")
    return Result(case["name"], "logits", difference, tolerance, difference <= tolerance, "")


def _run_damaged(library: ModuleType, case: Mapping[str, Any]) -> Result:
    refusals = tuple(getattr(library, "REFUSALS", ()))
    try:
        _logits(library, case, read_inputs(case))
    except Exception as error:
        is_refusal = isinstance(error, refusals) if refusals else True
        return Result(case["name"], "refused" if is_refusal else "error", None, None, is_refusal, _describe(error))
    return Result(case["name"], "loaded", None, None, False if refusals else None, "")


def _logits(library: ModuleType, case: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    adapter = ROOT / case["adapter"] if case["adapter"] else None
    return np.asarray(library.logits(ROOT / case["base"], adapter, dict(inputs)), np.float64)


def read_inputs(case: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the inputs of a case by name, each (batch, length), int32."""
    return {name: np.array(rows, np.int32) for name, rows in _read_json(case["inputs"]).items()}


def read_logits(path: Path) -> np.ndarray:
    """Return expected logits, float32."""
    content = json.loads(path.read_text("utf-8"))
    return np.array(content["logits"], np.float32).reshape(content["shape"])


def counted(logits: np.ndarray, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return which rows of the logits are compared.

    Args:
        logits: A classifier's (batch, labels), all of which count, or a decoder's (batch, length, vocabulary), of which
            those of visible tokens do.
        inputs: What they come from.
    """
    return inputs["attention_mask"] == 1 if logits.ndim == 3 else np.ones(len(logits), bool)


def format_table(results: Sequence[Result]) -> str:
    """Return the results as a table with one row a case, and a last line that counts."""
    rows = [("case", "outcome", "largest difference", "passed")]
    rows += [(one.case, one.outcome, _show_difference(one), _show_passed(one)) for one in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines[1:] = [f"{line}  {one.message[:120]}".rstrip() for line, one in zip(lines[1:], results, strict=True)]
    judged = [one.passed for one in results if one.passed is not None]
    beside = f", {len(results) - len(judged)} not judged" if len(judged) < len(results) else ""
    return "\n".join([*lines, f"{sum(judged)} of {len(judged)} passed{beside}"])


def _show_difference(result: Result) -> str:
    return "-" if result.difference is None else f"{result.difference:.1e} of {result.tolerance:.0e}"


def _show_passed(result: Result) -> str:
    return "-" if result.passed is None else "yes" if result.passed else "NO"


def _describe(error: Exception) -> str:
    lines = str(error).replace(f"{ROOT}/", "").strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _read_json(name: str) -> Any:
    return json.loads((ROOT / name).read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
