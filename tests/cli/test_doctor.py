import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from mindpet.cli import main as program
from mindpet.delta import LoRADense
from mindpet.kernels import switch
from mindpet.tuning import selftest
from mindpet.tuning._trials import TRIALS
from mindpet.utils.environment import describe_environment

DOCS = Path(__file__).parents[2] / "docs"
FEW = tuple(trial for trial in TRIALS if trial.layer in ("LoRADense", "rdrop_repeat"))


def _run(monkeypatch, arguments):
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["mindpet", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        program.main()
    return end.value.code


def test_versions_and_devices_are_shown(monkeypatch, capsys):
    assert _run(monkeypatch, ["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == {}
    assert report["selftest"] is None
    assert _run(monkeypatch, []) == 0
    printed = capsys.readouterr().out
    for name in ("mindpet", "python", "mindspore", "numpy", "scipy"):
        assert name in printed
        assert report["environment"][name] in printed


def test_a_known_bad_version_ends_with_1(monkeypatch, capsys):
    read = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0" if name == "numpy" else read(name))
    assert _run(monkeypatch, []) == 1
    assert "numpy: MindSpore is built against NumPy 1" in capsys.readouterr().out


def test_the_selftest_shows_tables_and_its_progress_beside_them(monkeypatch, capsys):
    monkeypatch.setattr(selftest, "TRIALS", FEW)
    assert _run(monkeypatch, ["--selftest", "--device", "CPU", "--dtype", "float32"]) == 0
    printed = capsys.readouterr()
    assert "4 of 4 passed" in printed.out
    assert selftest.TOLERANCES["float32"].source[:20] in printed.out
    assert "4/4 rdrop_repeat, float32, PyNative" in printed.err
    assert "4/4" not in printed.out


def test_a_wrong_layer_ends_with_1_and_is_named_in_the_report(monkeypatch, capsys):
    make = LoRADense.__init__

    def make_wrong(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        self.scaling *= 2

    monkeypatch.setattr(LoRADense, "__init__", make_wrong)
    monkeypatch.setattr(selftest, "TRIALS", FEW)
    assert _run(monkeypatch, ["--selftest", "--dtype", "float16", "--json"]) == 1
    printed = capsys.readouterr()
    assert "4/4 rdrop_repeat, float16, PyNative" in printed.err
    report = json.loads(printed.out)["selftest"]
    assert (report["device"], report["passed"], set(report["tolerances"])) == ("CPU", False, {"float16"})
    rows = [(case["layer"], case["dtype"], case["mode"], case["passed"]) for case in report["cases"]]
    assert rows == [
        (trial.layer, "float16", mode, trial.layer != "LoRADense") for trial in FEW for mode in ("graph", "PyNative")
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--selftest", "--device", "Ascend"], "Ascend cannot be used here"),
        (["--selftest", "--device", "GPU"], "GPU"),
        (["--selftest", "--dtype", "bfloat16"], "bfloat16 cannot be tested on CPU"),
        (["--selftest", "--json", "report.json"], "report.json"),
        (["--dtype", "float32"], "add --selftest"),
    ],
)
def test_bad_input_ends_with_2_before_anything_is_tested(monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, arguments) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert "LoRADense" not in errors
    assert list(tmp_path.iterdir()) == []


def test_missing_native_kernels_are_noted_with_the_reason(monkeypatch, capsys):
    monkeypatch.setattr(switch, "missing", lambda: "this processor has no AVX2")
    monkeypatch.setattr(switch, "_chosen", "off")
    assert _run(monkeypatch, ["--json"]) == 0
    assert "this processor has no AVX2" in json.loads(capsys.readouterr().out)["notes"]["kernels"]
    assert _run(monkeypatch, []) == 0
    assert "kernels: plain ones compute the same" in capsys.readouterr().out


def test_a_broken_mindspore_is_described(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mindspore", None)
    assert _run(monkeypatch, []) == 1
    assert "devices: mindspore cannot be imported" in capsys.readouterr().out
    assert _run(monkeypatch, ["--selftest"]) == 2


def test_the_help_does_not_import_mindspore():
    code = (
        "import sys; from typer.testing import CliRunner; from mindpet.cli.main import app;"
        "result = CliRunner().invoke(app, ['doctor', '--help']);"
        "sys.exit(result.exit_code or '--selftest' not in result.output or 'mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("page", ["doctor.md", "doctor.zh.md"])
def test_the_documents_name_each_key_and_tolerance(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    report = selftest.describe_selftest("CPU", [selftest.measure(selftest.Case(FEW[-1], "float32", "PyNative"))])
    levels = (describe_environment([]), report, report["cases"][0], report["tolerances"]["float32"])
    assert [key for level in levels for key in level if f"`{key}`" not in text] == []
    for dtype, tolerance in selftest.TOLERANCES.items():
        forward, gradient = re.search(rf"^\| {dtype} \| (\S+) \| (\S+) \|", text, re.MULTILINE).groups()
        assert (float(forward), float(gradient)) == pytest.approx((tolerance.forward, tolerance.gradient), rel=0.02)


@pytest.mark.slow
def test_the_whole_selftest_passes_within_two_minutes():
    command = [sys.executable, "-m", "mindpet.cli", "doctor", "--selftest", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
    report = json.loads(result.stdout)["selftest"]
    assert report["passed"]
    assert len(report["cases"]) == len(TRIALS) * len(selftest.DTYPES[report["device"]]) * 2
