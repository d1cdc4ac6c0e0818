"""The page on data: its records are read, its examples run, its tables list what the code takes."""

from pathlib import Path

import pytest

from mindpet.data.chat import Message, load_chat_template
from mindpet.data.instructions import load_instructions
from tests.data.tiny_tokenizers import gpt2
from tests.docs.test_documents import DOCS, _blocks, _names, _run_blocks, _table

PAGE = DOCS / "data.md"


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader's folder with the model and the documented records, ten times each."""
    monkeypatch.chdir(tmp_path)
    gpt2(Path("path/to/gpt2"))
    (records,) = _blocks(PAGE, "json")
    Path("talks.jsonl").write_text(records.text * 10, encoding="utf-8")


def test_the_examples_of_the_data_page_run(reader, capsys):
    names = _run_blocks(PAGE)
    assert 0 < names["packed"].steps_per_epoch < names["batches"].steps_per_epoch
    printed = capsys.readouterr().out
    assert "0 questions and 0 answers shortened" in printed
    assert "7.38905609893065" in printed and "'rougeL': 0.888" in printed


def test_the_documented_records_have_the_documented_forms(reader):
    documented = {name for row in _table(PAGE, "Keys") for name in _names(row[0])}
    assert documented == {"instruction", "output", "input", "prompt", "completion", "messages", "text"}
    data = load_instructions("talks.jsonl", 0)
    assert len({type(example).__name__ for example in data.train}) == 2


def test_the_plain_template_is_the_documented_one(reader):
    talk = [Message("user", "Which number follows 9?"), Message("assistant", "10")]
    assert load_chat_template("path/to/gpt2").render(talk) + "\n" == _blocks(PAGE, "text")[0].text
