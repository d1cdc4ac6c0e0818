"""`mindpet inspect`: what is in an adapter, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mindpet.cli._serving import print_json, progress

__all__ = ["command"]

_UNSAID: tuple[Any, ...] = (None, {}, [])  # of an option: there is nothing to show


def command(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Adapter's folder or file, or run folder.", show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option(help="Base model's folder, to repeat the adapter's probe on it.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show what an adapter is made of, and check its checksums.

    Example: mindpet inspect runs/demo
    """
    from mindpet.train.inspection import inspect_adapter

    contents = inspect_adapter(adapter)
    report = contents.as_dict()
    failed = bool(contents.problems)
    if model:
        report["on_model"] = _try(contents.path, model)
        failed = failed or not report["on_model"]["loads"]
    if as_json:
        print_json(report)
    else:
        _print(report)
    raise typer.Exit(int(failed))


def _try(adapter: Path, model: Path) -> dict[str, Any]:
    """Load the adapter onto its base, and return what that has shown."""
    from mindpet.train.serve import RefusedAdapterError, open_adapter

    try:
        report = open_adapter(adapter, model, progress()).report
    except RefusedAdapterError as error:
        return {"loads": False, "probe_holds": False, "said": str(error)}
    return {"loads": True, "probe_holds": bool(report and report.is_verified), "said": str(report)}


def _print(report: Mapping[str, Any]) -> None:
    result = Console()
    facts = Table("", "", title=report["path"], show_header=False)
    for name in ("kind", "version", "base", "data", "metrics", "probe", "parameters"):
        if report[name]:
            facts.add_row(name, _as_text(report[name]))
    facts.add_row("checksums", _describe_checksums(report))
    if "on_model" in report:
        facts.add_row("on the model", report["on_model"]["said"])
    result.print(facts)
    for block in report["methods"]:
        options = Table("option", "value", title=f"method {block.get('method')}")
        for name, value in block.items():
            if name != "method" and value not in _UNSAID:
                options.add_row(name, _as_text(value))
        result.print(options)
    tensors = Table("tensor", "shape", "dtype", title=f"{len(report['tensors'])} tensors")
    tensors.columns[0].overflow = "fold"
    for tensor in report["tensors"]:
        tensors.add_row(tensor["name"], " x ".join(map(str, tensor["shape"])) or "one number", tensor["dtype"])
    result.print(tensors)
    for problem in report["problems"]:
        result.print(problem, style="red", soft_wrap=True, markup=False)


def _describe_checksums(report: Mapping[str, Any]) -> str:
    if not report["checksums"]:
        return "none"
    return "do not hold" if report["problems"] else f"all {report['checksums']} hold"


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_as_text(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_as_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
