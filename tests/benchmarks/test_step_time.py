import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script, *arguments):
    result = subprocess.run(
        [sys.executable, BENCHMARKS / script, "--tiny", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bert-base, ptuning2", "smollm2, lora"])
def test_both_sides_do_the_same_work(tmp_path, case):
    figures = tmp_path / "figures.json"
    name, method = case.split(", ")
    sides = ("--side", "mindpet f32", "--side", "PEFT f32")
    written = run("step_time.py", "--case", name, "--method", method, *sides, "--rounds", 7, "--json", figures)
    results = json.loads(figures.read_text(encoding="utf-8"))["results"]
    assert results.keys() == {case}
    ours, theirs = results[case]["sides"]["mindpet f32"], results[case]["sides"]["PEFT f32"]
    assert len(ours["losses"]) == len(theirs["losses"]) == 22
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
    assert abs(ours["losses"][0] - ours["losses"][4]) > 1e-4, "the first batch comes again: its loss must have moved"
    for side in (ours, theirs):
        assert 0 < side["min_s"] <= side["median_s"] <= max(side["seconds"])
        assert 100 < side["peak_mb"] < 2000
    assert f"## {case}\n" in written


@pytest.mark.slow
def test_the_profile_names_what_a_step_consists_of():
    written = run("profile_ops.py")
    assert re.search(r"NativeLoRADense, native +\| forward +\| +4 ", written)
    assert re.search(r"BertSelfAttention, native +\| backward +\| +2 ", written)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2.0, 1.0], [2.0, 1.0], 0.0),
        ([2.0, 1.1], [2.0, 1.0], 0.1),
        ([1.0] * 20 + [5.0], [1.0] * 21, 0.0),
        ([1.0, math.nan, 9.0], [1.0, 1.0, 1.0], math.nan),
        ([math.inf], [1.0], math.inf),
    ],
)
def test_loss_difference(monkeypatch, ours, theirs, expected):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_time

    assert step_time.loss_difference(ours, theirs) == pytest.approx(expected, nan_ok=True)
