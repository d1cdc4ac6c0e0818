"""`mindpet doctor`: what is installed here, and whether the layers compute what they should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from mindpet.cli._serving import print_json
from mindpet.utils.environment import Finding, choose_device, describe_environment, read_environment
from mindpet.utils.exceptions import InputError

if TYPE_CHECKING:
    from mindpet.tuning.selftest import Record, Tolerance

__all__ = ["command"]


def command(
    selftest: Annotated[bool, typer.Option("--selftest", help="Test every layer against its float64 formula.")] = False,
    device: Annotated[
        Literal["CPU", "Ascend"] | None, typer.Option(help="Where to test; by default where MindSpore computes.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="Dtype to test, such as float16; may be repeated. By default all that the device has."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Show versions and devices, name what is known not to work, and test the layers on this device.

    Example: mindpet doctor --selftest --json
    """
    if not selftest and (device or dtype):
        raise InputError("--device and --dtype say what to test; add --selftest")
    result = Console(quiet=as_json)
    findings = [*read_environment(), *_find_kernels()]
    result.print(_environment_table(findings))
    for finding in findings:
        for text, style in ((finding.problem, "red"), (finding.note, "yellow")):
            if text:
                result.print(f"{finding.name}: {text}", style=style, soft_wrap=True, markup=False)
    report: dict[str, Any] = {**describe_environment(findings), "selftest": None}
    failed = any(finding.problem for finding in findings)
    if selftest:
        report["selftest"] = _run_selftest(device, dtype or (), result)
        failed = not report["selftest"]["passed"]
    if as_json:
        print_json(report)
    raise typer.Exit(int(failed))


def _run_selftest(device: str | None, dtypes: Sequence[str], result: Console) -> dict[str, Any]:
    """Run the self-test, show progress on stderr and its tables on stdout, and return its report."""
    device = choose_device(device)  # says in one sentence when MindSpore cannot be imported, which is next
    from mindpet.train.progress import announce
    from mindpet.tuning.selftest import TOLERANCES, describe_selftest, measure, plan

    cases = plan(device, dtypes)
    progress = Console(stderr=True)
    records = []
    for number, case in enumerate(cases, 1):
        with announce(progress, f"{number}/{len(cases)} {case.trial.layer}, {case.dtype}, {case.mode}"):
            records.append(measure(case))
    report = describe_selftest(device, records)
    result.print(_record_table(records, device))
    result.print(_tolerance_table({record.dtype: TOLERANCES[record.dtype] for record in records}))
    result.print(f"{sum(record.passed for record in records)} of {len(records)} passed in {report['seconds']:.0f} s")
    return report


def _find_kernels() -> list[Finding]:
    """Return which kernels are in use; nothing where MindSpore cannot be imported, which another line says."""
    try:
        choose_device(None)
    except InputError:
        return []
    try:
        from mindpet.kernels import describe_kernels
        from mindpet.kernels.switch import missing
    except InputError as error:  # the environment variable asks for what is not there
        return [Finding("kernels", None, None, str(error))]
    why = missing()
    note = f"plain ones compute the same, and a step takes longer: {why}" if why else None
    return [Finding("kernels", describe_kernels(), None, note=note)]


def _environment_table(findings: Sequence[Finding]) -> Table:
    table = Table("", "found", "known to work", title="environment")
    table.columns[1].overflow = "fold"
    for finding in findings:
        table.add_row(finding.name, finding.found or "nothing", finding.accepted, style=_style(not finding.problem))
    return table


def _record_table(records: Sequence[Record], device: str) -> Table:
    table = Table("layer", "dtype", "mode", title=f"errors against float64 on {device}")
    for heading in ("output", "gradient"):
        table.add_column(heading, justify="right")
    table.add_column("result")
    for record in records:
        errors = ("-" if error is None else f"{error:.1e}" for error in (record.forward_error, record.gradient_error))
        cells = (record.layer, record.dtype, record.mode, *errors, record.failure or "passed")
        table.add_row(*cells, style=_style(record.passed))
    return table


def _tolerance_table(tolerances: Mapping[str, Tolerance]) -> Table:
    table = Table("dtype", "output", "gradient", "where they come from", title="tolerances")
    for dtype, tolerance in tolerances.items():
        table.add_row(dtype, f"{tolerance.forward:.1e}", f"{tolerance.gradient:.1e}", tolerance.source)
    return table


def _style(good: bool) -> str | None:
    return None if good else "red"
