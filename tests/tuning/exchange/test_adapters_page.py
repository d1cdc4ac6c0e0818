"""What the page on adapters says is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import mindpet
from mindpet.tuning.exchange.record import Record
from mindpet.tuning.exchange.report import LoadReport
from tests.tiny import write_bert

PAGE = Path(__file__).parents[3] / "docs" / "adapters.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def table(page, heading):
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append(line.split("|")[1])
    return rows


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bert(Path("path/to/bert"))
    return tmp_path


def test_the_examples_run_and_print_what_the_page_shows(reader, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert capsys.readouterr().out == blocks("text")[0]
    assert not names["report"].has_effect or names["report"].is_verified


@pytest.mark.parametrize(
    ("page", "file", "part", "attribute"),
    [
        (PAGE, "File", "Part", "Attribute"),
        (PAGE.with_suffix(".zh.md"), "文件", "部分", "属性"),
    ],
)
def test_the_tables_list_what_there_is(reader, page, file, part, attribute):
    def names(heading):
        return [name for row in table(page, heading) for name in re.findall(r"`([^`]+)`", row)]

    assert set(names(part)) == Record.model_fields.keys() - {"version"}
    assert set(names(attribute)) <= set(dir(LoadReport)) | LoadReport.__dataclass_fields__.keys()
    exec(blocks("python")[0], {})
    assert set(names(file)) == {path.name for path in Path("news-adapter").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        {"r": 2, "lora_alpha": 6},
        {"r": 4, "target_modules": "all-linear", "rank_pattern": {"query": 2}, "alpha_pattern": {"value": 3}},
        {"r": 2, "bias": "lora_only", "target_modules": ["query", "output.dense"]},
    ],
)
def test_the_script_repeats_the_probe_in_peft(reader, config):
    from mindpet.models.bert import BertForSequenceClassification
    from tests.tuning.exchange.networks import trained

    (script,) = blocks("py")
    assert len(script.splitlines()) <= 30
    Path("check_probe.py").write_text(script)
    net = BertForSequenceClassification.from_pretrained("path/to/bert", num_labels=3)
    trained(net, mindpet.LoraConfig(**config, modules_to_save=["classifier"]))
    mindpet.save_adapter(net, "adapter")

    def check():
        command = [sys.executable, "check_probe.py", "adapter", "path/to/bert"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found = check()
    assert found.returncode == 0, found.stderr
    differences = [float(line.split()[0]) for line in found.stdout.splitlines()]
    assert len(differences) > 3
    assert max(differences) < 1e-5

    write_bert(Path("path/to/bert"), seed=1)
    assert "AssertionError" in check().stderr
