"""What the page on the commands shows: every command runs, and prints what stands below it, but for the figures."""

import json
import re
import shlex
import shutil
from functools import lru_cache

import pytest

from mindpet.train import serve
from tests.cli.runs import run_program, write_language_run, write_run
from tests.docs.test_documents import DOCS, _blocks, _run_blocks, _table
from tests.tiny import write_bert, write_task

PAGE = DOCS / "commands.md"


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader's folder with the models, the texts and the runs that the page names."""
    folder = tmp_path_factory.mktemp("reader")
    model, news = write_bert(folder / "path" / "to" / "bert"), write_task(folder / "news.jsonl")
    news.write_text(news.read_text().replace('"up"', '"business"').replace('"down"', '"sports"'))
    (folder / "headlines.txt").write_text("good day\n\nbad film\n")
    write_run(folder, "runs/news", ("business", "sports"), model=model, data=news, pooling="pooler")
    write_language_run(folder, "runs/chat", model=folder / "chat" / "model", data=folder / "capitals.jsonl")
    return folder


@pytest.fixture(scope="module")
def opened_once():
    return lru_cache(serve.open_run)


def _commands():
    """Return each documented command with the block below it that shows what it prints, or None."""
    blocks = _blocks(PAGE)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "bash":
            shown = following if following and following.language in ("text", "json") else None
            yield pytest.param(shlex.split(block.text)[1:], shown, id=block.text.strip())


def _shape(text):
    """Return what is fixed in a printed text: the first cells of tables, and lines without their numbers."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and line.strip()[0] not in "┏┡└┌┃"]
    cells = [line.split("│")[1].strip() if line.startswith("│") else line for line in lines]
    return [re.sub(r"\d[\d.,e-]*", "#", cell) for cell in cells if cell]


def _keys(value):
    return {key: _keys(one) for key, one in value.items()} if isinstance(value, dict) else None


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), _commands())
def test_a_documented_command_runs_and_prints_what_is_shown(
    reader, tmp_path, opened_once, monkeypatch, capsys, command, shown
):
    monkeypatch.chdir(reader)
    if command[0] == "finetune":  # elsewhere, as the run is there already
        shutil.copytree("path", tmp_path / "path")
        shutil.copy("news.jsonl", tmp_path)
        monkeypatch.chdir(tmp_path)
    if command[0] in ("evaluate", "infer"):  # the others change the network
        monkeypatch.setattr(serve, "open_run", lambda path, model, notify: opened_once(path))
    assert run_program(*command) == 0
    printed = capsys.readouterr().out
    if shown is None:
        return
    if shown.language == "json":
        assert _keys(json.loads(printed)) == _keys(json.loads(shown.text))
        return
    missing = [line for line in _shape(shown.text) if line not in _shape(printed)]
    assert missing == []


@pytest.mark.slow
def test_the_documented_python_runs(reader, monkeypatch, capsys):
    monkeypatch.chdir(reader)
    names = _run_blocks(PAGE)
    assert capsys.readouterr().out == "3 cells and the whole network\n"
    assert names["answers"][0].keys() == {"text", "label", "probabilities"}


@pytest.mark.parametrize(("page", "heading"), [("commands.md", "Command"), ("commands.zh.md", "命令")])
def test_the_table_lists_every_command(page, heading):
    from mindpet.cli.main import COMMANDS

    assert [row[0] for row in _table(DOCS / page, heading)] == [f"`mindpet {name}`" for name in COMMANDS]
