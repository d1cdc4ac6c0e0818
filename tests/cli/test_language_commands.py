"""The commands on a language model: its perplexity, what it writes, and what becomes of it elsewhere."""

import io
import json
import sys

import numpy as np
import pytest
from mindspore import Tensor

from mindpet.data.chat import Message
from mindpet.data.instructions import load_instructions
from mindpet.data.language import encode, encode_prompt
from mindpet.train import scoring
from mindpet.train.metrics import rouge
from mindpet.train.serve import open_run
from tests.cli.runs import opened, run_program, write_language_run  # noqa: F401

NEW = ["--max-new-tokens", 6]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run of LoRA on a tiny GPT-2, the model and its data."""
    folder = tmp_path_factory.mktemp("language")
    write_language_run(folder)
    return folder


@pytest.fixture(scope="module")
def served(home):
    return open_run(home / "run")


def _infer(capsys, home, *arguments):
    assert run_program("infer", home / "run", *arguments, *NEW) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _logits(served, ids):
    """Return the logits of one row of tokens, padded to one length so that there is one graph."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(ids)] = ids
    mask = (np.arange(64) < len(ids)).astype(np.int32)[None]
    return served.network(Tensor(row), Tensor(mask)).asnumpy()[0, : len(ids)].astype(np.float64)


@pytest.mark.usefixtures("opened")
def test_the_figures_are_those_of_the_logits_and_of_what_infer_writes(home, served, capsys):
    assert run_program("evaluate", home / "run", "--json", *NEW) == 0
    figures = json.loads(capsys.readouterr().out)
    test = load_instructions(home / "answers.jsonl", 3).test
    sequences = encode(test, served.tokenizer, served.template, 64)
    losses = []
    for ids, labels in zip(sequences.input_ids, sequences.labels, strict=True):
        logits = _logits(served, ids)
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-shares[place, label] for place, label in enumerate(labels) if label >= 0]
    answers = _infer(capsys, home, *(talk.messages[0].content for talk in test))
    written = rouge([one["completion"] for one in answers], [talk.messages[1].content for talk in test])
    assert figures == {
        "task": "language",
        "data": "answers",
        "split": "test",
        "texts": len(test),
        "targets": len(losses),
        "perplexity": pytest.approx(np.exp(np.mean(losses)), rel=1e-4),
        **{name: pytest.approx(value) for name, value in written.items()},
        "shortened_prompts": 0,
        "left_out": 0,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("opened")
def test_the_likeliest_tokens_are_written_one_after_another(home, served, capsys):
    for arguments, ids in (
        (["3+4"], list(encode_prompt([Message("user", "3+4")], served.tokenizer, served.template))),
        (["3+4", "--raw"], list(served.tokenizer.tokenize("3+4").ids)),
    ):
        (answer,) = _infer(capsys, home, *arguments)
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != served.tokenizer.eos_id):
            ids.append(int(_logits(served, ids)[-1].argmax()))
        expected = served.tokenizer.decode([token for token in ids[start:] if token != served.tokenizer.eos_id])
        assert answer == {"prompt": "3+4", "completion": expected}


@pytest.mark.usefixtures("opened")
def test_chance_follows_the_seed_and_not_how_lines_come_in(home, capsys, monkeypatch):
    chance = ["--temperature", 1.5, "--top-k", 20, "--top-p", 0.95]
    texts = ["1+1", "", "2+2", "3", "4+", "5+5", "6", "7+7"]  # two batches of one size, so that one graph serves them
    first = _infer(capsys, home, *texts, *chance, "--seed", 1)
    assert [one["prompt"] for one in first] == texts
    assert first[1]["completion"] is None

    class Slowly(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(3)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Slowly("\n".join(texts).encode())))
    assert _infer(capsys, home, *chance, "--seed", 1) == first
    assert _infer(capsys, home, *texts, *chance, "--seed", 2) != first


@pytest.mark.usefixtures("opened")
def test_a_text_that_is_too_long_is_said_and_the_others_are_answered(home, capsys):
    assert run_program("infer", home / "run", "1+1", "2+2", "3+3", "1+" * 30, *NEW) == 0
    printed = capsys.readouterr()
    answers = [json.loads(line)["completion"] for line in printed.out.splitlines()]
    assert [answer is None for answer in answers] == [False, False, False, True]
    assert "text 4: its" in printed.err


@pytest.mark.usefixtures("opened")
def test_a_prompt_without_room_is_shortened_or_left_out_and_said(home, capsys, monkeypatch):
    rows = []
    monkeypatch.setattr(
        scoring, "write_behind", lambda served, prompts, writing: rows.extend(prompts) or map(str, prompts)
    )
    assert run_program("evaluate", home / "run", "--json", "--max-new-tokens", 35) == 0
    shortened = json.loads(capsys.readouterr().out)
    assert (shortened["shortened_prompts"], shortened["left_out"]) == (shortened["texts"], 0)
    assert shortened.keys() > {"perplexity", "rouge1"}
    assert [len(row) for row in rows] == [64 - 35] * shortened["texts"]
    assert run_program("evaluate", home / "run", "--json") == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert (figures["shortened_prompts"], figures["left_out"]) == (0, figures["texts"])
    assert figures["perplexity"] == shortened["perplexity"] and "rouge1" not in figures
    assert f"{figures['texts']} of {figures['texts']} prompts left out of ROUGE" in printed.err
    assert "128 are for the answer; a lower --max-new-tokens" in " ".join(printed.err.split())


def test_the_merged_model_and_the_adapter_go_elsewhere(home, tmp_path, capsys):
    assert run_program("merge", home / "run", "--out", tmp_path / "model", "--verify") == 0
    assert "Largest difference of a logit" in capsys.readouterr().out
    assert run_program("export", home / "run", "--format", "peft", "--out", tmp_path / "adapter") == 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")


def test_an_adapter_of_a_language_model_is_tried_on_its_base(home, capsys):
    assert run_program("inspect", home / "run", "--model", home / "model", "--json") == 0
    assert json.loads(capsys.readouterr().out)["on_model"]["probe_holds"]
