"""What the documents say is true: examples run, tables list what the code has, links lead somewhere."""

import ast
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import yaml

import mindpet
from mindpet.train.methods import METHOD_NAMES, OPTIONS, defaults_of
from mindpet.train.settings import FinetuneSettings, load_settings
from tests.tiny import write_bert, write_task

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not path.name.endswith(".zh.md"))
TWINS = [
    (ROOT / "README.md", ROOT / "README.zh-CN.md"),
    *((page, page.with_suffix(".zh.md")) for page in PAGES),
]
DOCUMENTS = sorted({path for pair in TWINS for path in pair} | {ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"})


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def _blocks(path, language=None):
    """Return the fenced blocks of a document, or those of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found if language in (None, block[0])]


def _prose(path):
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _table(path, heading):
    """Return the rows, without the head, of the table whose first column has this heading."""
    lines = _prose(path).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _names(cell):
    """Return the names in back quotes in a table's cell."""
    return re.findall(r"`([^`]+)`", cell)


def _name(path):
    return str(path.relative_to(ROOT))


def _run_blocks(path):
    """Run the Python blocks of a document as one script, and return its names.

    It is a file, because MindSpore reads a cell's source when it compiles a graph.
    """
    file = Path(f"{path.stem.lower()}_example.py").absolute()
    file.write_text("\n\n".join(block.text for block in _blocks(path, "python")), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder, with the model and the texts that the documents name."""
    monkeypatch.chdir(tmp_path)
    write_bert(Path("path/to/bert"))
    write_task(Path("news.jsonl"))
    return tmp_path


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_python_block_compiles(path):
    for block in _blocks(path, "python"):
        compile(block.text, path.name, "exec")


@pytest.mark.parametrize(("english", "chinese"), TWINS, ids=lambda path: path.name)
def test_both_languages_have_the_same_examples(english, chinese):
    assert _blocks(english) == _blocks(chinese)


def test_each_page_has_its_twin_and_its_place_in_the_navigation():
    chinese = sorted(DOCS.rglob("*.zh.md"))
    assert chinese == sorted(twin for page, twin in TWINS if page in PAGES)
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(navigation) == [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_relative_link_leads_to_a_file(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(path))
    for target in targets:
        file = target.partition("#")[0]
        if "://" not in target and file:
            assert (path.parent / file).is_file(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_make_target_exists(path):
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def test_the_changelog_begins_with_this_version():
    first = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert first and first[1] == mindpet.__version__


def test_the_readmes_mark_the_demo_output_for_replacement():
    for path in TWINS[0]:
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- demo output -->") == text.count("<!-- /demo output -->") == 1
        assert "BERT tuned with lora" in text.split("<!-- demo output -->")[1].split("<!-- /demo output -->")[0]


def _shown(default):
    if isinstance(default, tuple):
        return ", ".join(default)
    return str(default)


def _choices(annotation):
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


@pytest.mark.parametrize(
    ("page", "heading", "none"),
    [("finetuning.md", "Setting", "none"), ("finetuning.zh.md", "设置", "无")],
)
def test_the_table_of_settings_is_the_settings_class(page, heading, none):
    rows = _table(DOCS / page, heading)
    fields = {name: field for name, field in FinetuneSettings.model_fields.items() if name not in OPTIONS}
    assert [_names(row[0]) for row in rows] == [[name] for name in fields]
    for (setting, values, default, meaning), field in zip(rows, fields.values(), strict=True):
        expected = none if field.default is None else f"`{_shown(field.default)}`"
        assert default == expected, setting
        if choices := _choices(field.annotation):
            assert values.split(", ") == choices, setting
        if page == "finetuning.md":
            assert meaning == field.description, setting


def test_the_documented_settings_file_is_valid(reader):
    (block,) = _blocks(DOCS / "finetuning.md", "yaml")
    Path("run.yaml").write_text(block.text)
    settings = load_settings(Path("run.yaml"), {"epochs": 6})
    assert (settings.r, settings.target_modules, settings.epochs) == (16, ("query", "key", "value"), 6)


def test_the_documented_data_is_valid(tmp_path):
    from mindpet.data.jsonl import read_objects

    (block,) = _blocks(DOCS / "finetuning.md", "json")
    file = tmp_path / "news.jsonl"
    file.write_text(block.text)
    assert [set(value) for _, value in read_objects(file)] == [{"text", "label"}] * 2


@pytest.mark.parametrize(("page", "heading"), [("methods.md", "Method"), ("methods.zh.md", "方法")])
def test_the_table_of_methods_has_all_of_them_and_their_learning_rates(page, heading):
    rows = _table(DOCS / page, heading)
    assert [_names(row[0]) for row in rows] == [[method] for method in METHOD_NAMES]
    for method, row in zip(METHOD_NAMES, rows, strict=True):
        assert _names(row[4]) == [str(defaults_of(method)["learning_rate"])]


@pytest.mark.parametrize(
    ("page", "heading", "none"), [("methods.md", "Method | Option", "none"), ("methods.zh.md", "方法 | 选项", "无")]
)
def test_the_table_of_options_is_that_of_the_command_line(page, heading, none):
    rows = _table(DOCS / page, heading)
    options = [(m, option) for m in METHOD_NAMES for option in OPTIONS.values() if m in option.defaults]
    assert [_names(f"{row[0]} {row[1]}") for row in rows] == [[m, option.name] for m, option in options]
    for (method, option), (_, _, default, meaning) in zip(options, rows, strict=True):
        value = option.defaults[method]
        assert default == (none if value in (None, {}, ()) else f"`{value}`"), option.name
        assert meaning == option.meanings[method] or page != "methods.md"


def test_the_documented_pet_config_is_read(tmp_path):
    (block,) = _blocks(DOCS / "methods.md", "yaml")
    file = tmp_path / "finetune_bert.yaml"
    file.write_text(block.text)
    settings = load_settings(None, {}, file)
    assert (settings.method, settings.r, settings.lora_dropout) == ("lora", 8, 0.1)


def test_the_examples_of_the_attaching_page_run(reader, mode, capsys):
    page = DOCS / "attaching.md"
    names = _run_blocks(page)
    printed = capsys.readouterr().out
    assert _blocks(page, "text")[0].text in printed
    assert (names["before"] != names["after"]).any()
    configs = {name for row in _table(page, "Configuration") for name in _names(row[0])}
    assert configs == {name for name in mindpet.__all__ if name.endswith("Config")}


@pytest.mark.parametrize("page", ["lora.md", "lora.zh.md"])
def test_the_table_of_delta_layers_lists_all_of_them(page):
    tree = ast.parse((ROOT / "mindpet" / "delta" / "__init__.py").read_text(encoding="utf-8"))
    (public,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    )
    rows = _table(DOCS / page, {"lora.md": "Names", "lora.zh.md": "名称"}[page])
    assert sorted(name for row in rows for name in _names(row[0])) == sorted(public)


@pytest.mark.parametrize("page", ["lora.md", "lora.zh.md"])
def test_the_table_of_lora_config_is_the_class(page):
    rows = _table(DOCS / page, {"lora.md": "Field of `LoraConfig`", "lora.zh.md": "`LoraConfig` 的字段"}[page])
    from mindpet.tuning.config import LoraConfig

    fields = LoraConfig.model_fields
    assert [_names(row[0]) for row in rows] == [[name] for name in fields]
    for row, field in zip(rows, fields.values(), strict=True):
        if isinstance(field.default, tuple):
            assert _names(row[1]) == list(field.default)
        else:
            assert row[1] == str(field.default)


def test_the_example_of_the_readme_trains_lora_and_the_classifier_only(reader, mode):
    net = _run_blocks(ROOT / "README.md")["net"]
    trained = {parameter.name for parameter in net.trainable_params()}
    attention = "bert.encoder.layer.0.attention.self"
    delta = {
        f"{attention}.{layer}.mindpet_delta_lora_{factor}" for layer in ("query", "value") for factor in ("a", "b")
    }
    assert trained == delta | {"classifier.weight", "classifier.bias"}


def test_the_examples_of_the_bert_page_run(reader, mode):
    names = _run_blocks(DOCS / "bert.md")
    assert names["logits"].shape == (1, 5)
    assert names["classifier"].head_is_new
    hidden, pooled = names["encoder"](names["input_ids"], *[names["ops"].ones_like(names["input_ids"])] * 2)
    assert (hidden.shape[:2], pooled.shape[0]) == (names["input_ids"].shape, 1)


def test_the_examples_of_the_lora_page_run(reader, mode):
    names = _run_blocks(DOCS / "lora.md")
    assert sorted(path.name for path in Path("checkpoints").glob("*.ckpt")) == [
        "DELTA_CKP-2_4.ckpt",
        "DELTA_CKP-3_4.ckpt",
    ]
    assert {"body.mindpet_delta_lora_a", "body.mindpet_delta_lora_b", "head.weight", "head.bias"} == set(
        names["values"]
    )
    assert float(names["loss"].asnumpy()) > 0
    assert all(parameter.name.startswith(("bert.", "classifier.")) for parameter in names["net"].get_parameters())


def test_the_examples_of_the_merging_page_run(reader, mode, capsys):
    names = _run_blocks(DOCS / "merging.md")
    assert "2 layers merged into float32 weights." in capsys.readouterr().out
    for given in ("merged", "plain"):
        np.testing.assert_allclose(names[given], names["attached"], rtol=1e-5, atol=1e-5)
    assert np.array_equal(names["unmerged"], names["attached"])


def test_the_examples_of_the_page_on_several_adapters_run(reader, mode, capsys):
    names = _run_blocks(DOCS / "several-adapters.md")
    assert "['news', 'mail'] news" in capsys.readouterr().out
    np.testing.assert_allclose(names["by_none"], names["base"], rtol=1e-5, atol=1e-6)
    assert (names["by_news"] != names["base"]).any()
    np.testing.assert_allclose(names["each"][0], names["by_mail"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(names["each"][1], names["by_news"][1], rtol=1e-5, atol=1e-6)
    assert mindpet.list_adapters(names["net"]) == ["news", "mail", "post", "both", "trimmed"]


def test_the_migration_page_reads_a_checkpoint_of_1_0_4(tmp_path, monkeypatch):
    import mindspore
    from mindspore import nn

    from mindpet.delta import LoRADense
    from mindpet.graph import freeze_delta

    class Old(nn.Cell):
        def __init__(self):
            super().__init__()
            self.body = LoRADense(6, 4, 2, 3)
            self.head = nn.Dense(4, 3)

    monkeypatch.chdir(tmp_path)
    net = Old()
    freeze_delta(net, "lora", exclude=["head*"])
    wanted = {parameter.name: parameter + 1 for parameter in net.trainable_params()}
    step = nn.TrainOneStepCell(net, nn.Adam(net.trainable_params()))
    old_names = {
        "body.mindpet_delta_lora_a": "body.mindpet_delta_lora_A",
        "body.mindpet_delta_lora_b": "body.tk_delta_lora_B",
    }
    content = [
        {"name": old_names.get(parameter.name, parameter.name), "data": wanted.get(parameter.name, parameter)}
        for parameter in step.trainable_params()
    ]
    assert len(content) > len(wanted)
    mindspore.save_checkpoint(content, "DELTA_CKP-3_100.ckpt")
    (example,) = _blocks(DOCS / "migration.md", "python")
    with pytest.warns(UserWarning, match="unverified"):
        exec(example.text, {"network": net})
    assert all((parameter.asnumpy() == wanted[parameter.name].asnumpy()).all() for parameter in net.trainable_params())


@pytest.mark.parametrize("mode", ["graph"], indirect=True)
def test_the_documented_run_leaves_what_the_page_says(reader, mode, monkeypatch):
    from mindpet.cli import main

    page = DOCS / "finetuning.md"
    command = shlex.split(_blocks(page, "bash")[0].text)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 0

    run = Path("runs/news")
    documented = {name.rstrip("/") for row in _table(DOCS / "getting-started.md", "File") for name in _names(row[0])}
    assert {path.name for path in run.iterdir()} == documented
    metrics = json.loads((run / "metrics.json").read_text())
    for file, heading in ((page, "Key"), (page.with_suffix(".zh.md"), "键")):
        assert [name for row in _table(file, heading) for name in _names(row[0])] == list(metrics)
    logged = {key for line in (run / "log.jsonl").read_text().splitlines() for key in json.loads(line)}
    paragraph = next(part for part in _prose(page).split("\n\n") if part.startswith("`log.jsonl` holds"))
    assert logged == set(_names(paragraph)) - {"log.jsonl"}
    load_settings(run / "settings.yaml", {})

    names = _run_blocks(page)
    assert names["logits"].shape == (1, 2)
    assert names["outcome"].finished
