import json
import shutil
import subprocess
import sys

import mindspore
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

from mindpet.train.inspection import inspect_adapter
from tests.cli.runs import run_program, write_run
from tests.tiny import write_bert


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    write_run(folder)
    return folder


@pytest.fixture
def adapter(home, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(home / "run" / "adapter", tmp_path / "adapter")


def _report(capsys, *arguments, code=0):
    assert run_program("inspect", *arguments, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_a_run_tells_what_its_adapter_is_made_of(home, capsys):
    report = _report(capsys, home / "run")
    assert (report["kind"], report["base"], report["data"]) == ("mindpet", "tiny", "task")
    assert report["metrics"] == {"accuracy": 0.75}
    assert report["problems"] == []
    assert report["checksums"] == 6 + 2
    (method,) = report["methods"]
    assert (method["method"], method["r"], method["lora_alpha"]) == ("lora", 8, 16.0)
    shapes = {tensor["name"]: (tensor["shape"], tensor["dtype"]) for tensor in report["tensors"]}
    assert shapes["classifier.weight"] == ([2, 12], "float32")
    assert report["parameters"] == sum(np.prod(shape) for shape, _ in shapes.values()) == 410


def test_the_tables_say_the_same(home, capsys):
    assert run_program("inspect", home / "run" / "adapter") == 0
    printed = capsys.readouterr().out
    for text in (
        "tiny",
        "accuracy: 0.75",
        "all 8 hold",
        "410",
        "8 x 12",
        "lora_alpha",
        "3 cells and the whole network",
    ):
        assert text in printed


def test_the_probe_is_repeated_on_the_base(home, adapter, tmp_path, capsys):
    report = _report(capsys, adapter, "--model", home / "model")
    assert report["on_model"]["loads"]
    assert report["on_model"]["probe_holds"]
    other = write_bert(tmp_path / "other", seed=7)
    report = _report(capsys, adapter, "--model", other, code=1)
    assert not report["on_model"]["loads"]
    assert "trained on another base" in report["on_model"]["said"]


def _flip(file, place=-1):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_changed_tensor_is_named_and_ends_with_1(adapter, capsys):
    _flip(adapter / "adapter_model.safetensors")
    report = _report(capsys, adapter, code=1)
    assert len(report["problems"]) == 2
    assert any("differs from its checksum" in problem for problem in report["problems"])
    assert run_program("inspect", adapter) == 1
    assert "do not hold" in capsys.readouterr().out
    assert len(_report(capsys, adapter / "adapter_model.safetensors", code=1)["problems"]) == 1


def test_a_changed_configuration_is_named(adapter, capsys):
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 8', '"r": 4'))
    assert "other methods" in _report(capsys, adapter, code=1)["problems"][0]


def test_an_adapter_of_peft_is_shown(tmp_path, home, capsys):
    out = tmp_path / "peft"
    assert run_program("export", home / "run", "--format", "peft", "--out", out) == 0
    capsys.readouterr()
    report = _report(capsys, out)
    assert (report["kind"], report["checksums"], report["probe"]) == ("peft", 0, None)
    assert report["methods"][0]["method"] == "LORA"
    assert report["methods"][0]["r"] == 8


def test_files_without_a_record_are_shown(tmp_path, capsys):
    save_file({"a.mindpet_delta_lora_a": np.full((2, 3), np.nan, np.float32)}, tmp_path / "bare.safetensors")
    report = _report(capsys, tmp_path / "bare.safetensors", code=1)
    assert report["kind"] == "tensors"
    assert report["problems"] == ["a.mindpet_delta_lora_a holds NaN or infinite numbers"]
    parameter = mindspore.Parameter(Tensor(np.ones((2, 3), np.float32)), name="a.tk_delta_lora_A")
    mindspore.save_checkpoint([{"name": parameter.name, "data": parameter}], str(tmp_path / "old.ckpt"))
    report = _report(capsys, tmp_path / "old.ckpt")
    assert (report["kind"], report["parameters"], report["checksums"]) == ("ckpt", 6, 0)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing there", "does not exist"),
        ("no adapter", "adapter_config.json"),
        ("no tensors", "adapter_model.safetensors"),
        ("torn", "cannot be read as safetensors"),
        ("no JSON", "this is not JSON"),
        ("a damaged record", "SHA-256"),
        ("no such model", "is not an existing folder"),
    ],
)
def test_what_cannot_be_read_ends_with_2(adapter, tmp_path, capsys, what, said):
    tensors, arguments = adapter / "adapter_model.safetensors", [adapter]
    if what == "nothing there":
        arguments = [tmp_path / "nowhere"]
    elif what == "no adapter":
        arguments = [tmp_path]
    elif what == "no tensors":
        tensors.unlink()
    elif what == "torn":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif what == "no JSON":
        (adapter / "adapter_config.json").write_text("{")
    elif what == "a damaged record":
        tensors.write_bytes(tensors.read_bytes().replace(b"float16", b"float17", 1))
    else:
        arguments += ["--model", tmp_path / "nowhere"]
    assert run_program("inspect", *arguments) == 2
    assert said in capsys.readouterr().err


def test_mindspore_is_not_imported_for_files_that_need_none(home):
    code = (
        "import sys; from mindpet.train.inspection import inspect_adapter;"
        f"assert inspect_adapter({str(home / 'run')!r}).parameters == 410; assert 'mindspore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_contents_can_be_asked_from_python(home):
    contents = inspect_adapter(home / "run" / "adapter")
    assert contents.record is not None
    assert contents.as_dict()["tensors"][0]["name"] == contents.tensors[0].name
