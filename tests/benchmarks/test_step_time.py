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
@pytest.mark.skipif(not (BENCHMARKS.parent / ".venv-mindpet-1").exists(), reason="needs `make old-mindpet`")
def test_mindpet_1_does_the_same_work():
    sides = ("--side", "MindPet 1.0.4", "--side", "PEFT f32")
    written = run("step_time.py", "--case", "bert-base", "--method", "lora", *sides, "--rounds", 7)
    assert "| MindPet 1.0.4 |" in written
    assert re.search(
        r"MindPet 1\.0\.4 runs in .*: Python [\d.]+, mindpet 1\.0\.4, mindspore [\d.]+, mindformers ", written
    )
    assert re.search(r"from those of PEFT f32: MindPet 1\.0\.4 [\d.]+e-0[5-9]\.", written)


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


def test_the_side_of_mindpet_1_says_how_to_make_its_environment(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step_time

    missing = step_time.MINDPET_1.parent / ".venv-nowhere" / "bin" / "python"
    side = step_time.Side("side_mindpet_1", {}, 1e-4, python=missing)
    monkeypatch.setitem(step_time.SIDES, "MindPet 1.0.4", side)
    workers, failed = step_time.start("bert-base, lora", ["MindPet 1.0.4"], tmp_path)
    assert not workers
    assert failed == {"MindPet 1.0.4": "there is no .venv-nowhere/bin/python; `make old-mindpet` makes it"}
    result = {"title": "", "padding": 0.0, "sides": {}, "failed": failed, "loss_differences": {}}
    assert "MindPet 1.0.4 does not run: there is no" in step_time.report({}, {"bert-base, lora": result})
