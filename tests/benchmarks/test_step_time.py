import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_both_sides_do_the_same_work(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, BENCHMARKS / "step_time.py", "--tiny", "--rounds", "7", "--steps", "3"]
    run = subprocess.run([*command, "--json", figures], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads(figures.read_text(encoding="utf-8"))["cases"]
    assert results.keys() == {"headlines", "bert-base"}
    for name, result in results.items():
        ours, theirs = result["sides"]["mindpet"], result["sides"]["PEFT"]
        assert len(ours["losses"]) == len(theirs["losses"]) == 22
        assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-4)
        assert abs(ours["losses"][0] - ours["losses"][4]) > 1e-3, (
            "the first batch comes again: its loss must have moved"
        )
        for side in (ours, theirs):
            assert 0 < side["min_s"] <= side["median_s"] <= max(side["seconds"])
            assert side["idle_busy_s"] < 0.5 * sum(side["seconds"]) + 0.5
            assert 100 < side["peak_mb"] < 2000
        assert result["ratios"]["median_s"] == pytest.approx(ours["median_s"] / theirs["median_s"])
        assert f"## {name}\n" in run.stdout


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
