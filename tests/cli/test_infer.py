import io
import json
import os
import sys

import numpy as np
import pytest

from mindpet.train.answering import read_lines
from mindpet.train.serve import open_run
from tests.cli.runs import opened, run_program, write_run  # noqa: F401

pytestmark = pytest.mark.usefixtures("opened")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("infer"))


@pytest.fixture(scope="module")
def served(run):
    return open_run(run)


def _answers(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


TEXTS = ["good day", "very bad film the a very", "fine", "poor poor", "the good bad a day very fine film day"]


def test_each_text_gets_a_label_with_probabilities_in_order(run, capsys):
    assert run_program("infer", run, *TEXTS) == 0
    answers = _answers(capsys)
    assert [answer["text"] for answer in answers] == TEXTS
    for answer in answers:
        assert list(answer) == ["text", "label", "probabilities"]
        assert list(answer["probabilities"]) == ["down", "up"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-6)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)


def test_a_text_gets_the_same_answer_in_whatever_company(run, tmp_path, capsys, monkeypatch):
    assert run_program("infer", run, *TEXTS) == 0
    together = _answers(capsys)
    assert run_program("infer", run, TEXTS[3]) == 0
    assert _answers(capsys) == [together[3]]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    assert run_program("infer", run, "--file", file) == 0
    assert _answers(capsys) == together
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert run_program("infer", run) == 0
    assert _answers(capsys) == together


def test_empty_lines_and_bad_bytes_have_an_answer_each(run, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_bytes(b"\xef\xbb\xbfgood day\r\n\n  \nbad \xff film\n\x00fine\nno end")
    assert run_program("infer", run, "--file", file) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [answer["text"] for answer in answers] == ["good day", "", "  ", "bad \ufffd film", "\x00fine", "no end"]
    assert [answer["label"] is None for answer in answers] == [False, True, True, False, False, False]
    assert answers[1] == {"text": "", "label": None, "probabilities": None}
    assert "text 4: bytes that are no UTF-8" in printed.err


def test_where_stdout_takes_no_utf_8_the_json_is_ascii(run, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "latin-1"))
    assert run_program("infer", run, "好 day") == 0
    sys.stdout.flush()
    assert json.loads(printed.getvalue().decode("ascii"))["text"] == "好 day"


def test_a_file_of_nothing_gives_nothing(run, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.touch()
    assert run_program("infer", run, "--file", file, "--out", tmp_path / "answers.jsonl") == 0
    assert (tmp_path / "answers.jsonl").read_text() == ""


def test_a_pipe_is_read_once_as_a_file_is(run, capsys):
    reading, writing = os.pipe()
    with os.fdopen(reading):
        with os.fdopen(writing, "w") as pipe:
            pipe.write("good day\nbad day\n")
        assert run_program("infer", run, "--file", f"/dev/fd/{reading}") == 0  # as the shell's <(...) names it
    assert [answer["text"] for answer in _answers(capsys)] == ["good day", "bad day"]
    assert run_program("infer", run, "--file", os.devnull) == 0
    assert _answers(capsys) == []


def test_the_file_of_answers_is_whole_and_kept_unless_overwrite_is_given(run, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    assert run_program("infer", run, "good day", "--out", out) == 0
    before = out.read_text()
    assert json.loads(before)["text"] == "good day"
    assert capsys.readouterr().out == ""
    assert run_program("infer", run, "bad day", "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == before
    assert run_program("infer", run, "bad day", "--out", out, "--overwrite") == 0
    assert json.loads(out.read_text())["text"] == "bad day"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["good", "--file", "texts.txt"], "give either"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["good", "--out", "no/such/folder.jsonl"], "no existing folder"),
        (["good", "--temperature", "0.5"], "a classifier writes nothing"),
        (["--file", "."], ". cannot be read (Is a directory); name another"),
        (["good", "--top-k", "5"], "--top-k: 5 was given, and it chooses by chance"),
        (
            ["good", "--top-p", "1.5", "--temperature", "1"],
            "--top-p: 1.5 was given, and it takes a number above 0 and up",
        ),
        (["good", "--top-p", "0", "--temperature", "1"], "--top-p: 0.0 was given"),
        (["good", "--temperature", "inf"], "--temperature: inf was given"),
        (["good", "--temperature", "1e-9"], "--temperature is 1e-09; expected is 0"),
    ],
)
def test_bad_input_ends_with_2(run, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run_program("infer", run, *arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\r\nb\r", [b"a", b"b"]),
        (b"a\n\nb\n", [b"a", b"", b"b"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", [b"a", b"\xef\xbb\xbfb"]),
        (b"\xef\xbb\xbfa", [b"a"]),
        (b"x" * 200_000 + b"\ny", [b"x" * 200_000, b"y"]),
    ],
)
def test_lines_are_those_of_the_stream(content, lines):
    groups = list(read_lines(io.BufferedReader(io.BytesIO(content)), 2))
    assert [line for group in groups for line in group] == lines
    assert max(map(len, groups), default=0) <= 2


def test_a_line_is_there_before_the_next_one_is_written():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        groups = read_lines(stream, 8)
        pipe.write(b"one\ntw")
        assert next(groups) == [b"one"]
        pipe.write(b"o\nthree")
        assert next(groups) == [b"two"]
        pipe.close()
        assert list(groups) == [[b"three"]]


def test_random_bytes_are_answered_line_by_line(run, tmp_path, capsys):
    content = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    (tmp_path / "texts").write_bytes(content)
    assert run_program("infer", run, "--file", tmp_path / "texts") == 0
    assert len(_answers(capsys)) == content.count(b"\n") + (not content.endswith(b"\n"))
