"""A language model's run: perplexity, its base, resuming, packing."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from mindspore import Tensor
from rich.console import Console
from safetensors.numpy import load_file

import mindpet
from mindpet.cli import main as program
from mindpet.models.auto import load_causal_lm
from mindpet.train import finetune as module
from mindpet.train.finetune import finetune
from mindpet.train.language import open_language
from mindpet.train.record import TIMES
from mindpet.train.settings import FinetuneSettings, load_settings
from mindpet.utils.exceptions import InputError
from tests.tiny import write_bert
from tests.train.tiny_language import write_answers, write_language_model

QUIET = Console(quiet=True)


def _settings(folder, out, **changes):
    given = {"model": folder / "model", "data": folder / "answers.jsonl", "out": folder / out, "batch_size": 4}
    given |= {"epochs": 3, "learning_rate": 0.02, "r": 4, "lora_dropout": 0.1, "packing": True}
    return FinetuneSettings(**given | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a tiny GPT-2, prompts with completions, and a finished run, by its path."""
    folder = tmp_path_factory.mktemp("language")
    write_language_model(folder / "model")
    write_answers(folder / "answers.jsonl", "completion")
    assert finetune(_settings(folder, "run"), QUIET).finished
    return folder


def _entries(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_run_says_its_task_and_its_perplexity_falls(run):
    metrics = _metrics(run / "run")
    assert {"perplexity", "valid_perplexity", "base_perplexity", "padding_share", "trainable_params"} <= metrics.keys()
    assert not {"accuracy", "baseline_accuracy"} & metrics.keys()
    assert metrics["perplexity"] < 0.8 * metrics["base_perplexity"]
    settings = yaml.safe_load((run / "run" / "settings.yaml").read_text())
    assert settings["task"] == "language" and settings["max_length"] == 512
    assert not settings.keys() & {"pooling", "head_learning_rate", "r_drop"}
    assert not (run / "run" / "labels.json").exists()
    last = _entries(run / "run")[-1]
    assert last == {"epoch": 3, "step": last["step"], "valid_perplexity": metrics["valid_perplexity"]}
    adapter = load_file(run / "run" / "adapter" / "adapter_model.safetensors")
    assert all("mindpet_delta_lora" in name for name in adapter), "the head is no part of it"
    assert "| perplexity |" in (run / "run" / "adapter" / "README.md").read_text()


def test_the_base_perplexity_is_that_of_the_plain_network_on_the_answers(run):
    network = load_causal_lm(run / "model", dropout=0.0)
    network.set_train(False)
    losses = []
    for batch in open_language(_settings(run, "unused"), QUIET).encoded.test.ordered():
        logits = network(Tensor(batch.input_ids), Tensor(batch.attention_mask)).asnumpy().astype(np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        told = np.take_along_axis(log_probabilities, np.maximum(batch.labels, 0)[..., None], -1)[..., 0]
        losses += list(-told[batch.labels >= 0])
    assert _metrics(run / "run")["base_perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_a_stopped_run_goes_on_to_the_same_end(run, monkeypatch, capsys):
    class Stopping(module.TrainStep):
        def __call__(self, batch):
            if int(self._count.asnumpy()) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "TrainStep", Stopping)
        assert not finetune(_settings(run, "parts"), QUIET).finished
    monkeypatch.setattr(sys, "argv", ["mindpet", "finetune", "--out", str(run / "parts"), "--resume"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    assert _entries(run / "parts") == _entries(run / "run")
    whole, parts = _metrics(run / "run"), _metrics(run / "parts")
    assert all(parts[name] == whole[name] for name in ("perplexity", "valid_perplexity", "base_perplexity"))
    printed = capsys.readouterr().out
    assert f"{whole['base_perplexity']:.3f}" in printed and f"{whole['perplexity']:.3f}" in printed


def test_packing_saves_padding_and_changes_no_text_that_is_measured(run, tmp_path):
    given = {"model": run / "model", "data": write_answers(tmp_path / "short.jsonl", count=300), "batch_size": 4}
    packed, plain = (
        open_language(FinetuneSettings(**given, packing=packing), QUIET).encoded for packing in (True, False)
    )
    assert packed.train.padding_share < plain.train.padding_share
    assert packed.train.steps_per_epoch < plain.train.steps_per_epoch
    for split in ("valid", "test"):
        targets = [
            sorted(label for batch in getattr(encoded, split).ordered() for label in batch.labels[batch.labels >= 0])
            for encoded in (packed, plain)
        ]
        assert targets[0] == targets[1]


def test_the_task_is_recognised_from_the_model_unless_it_is_given(run, tmp_path):
    assert FinetuneSettings(model=run / "model").task == "language"
    assert FinetuneSettings(model=write_bert(tmp_path / "bert")).task == "classification"
    assert FinetuneSettings().task == "classification"
    assert FinetuneSettings(model=run / "model", task="classification").task == "classification"
    assert FinetuneSettings(task="language").peft_config().modules_to_save == ()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"task": "language", "pooling": "cls"}, "pooling: a setting of the task classification, but the task is lang"),
        ({"task": "language", "r_drop": 2.0}, "r_drop: a setting of the task classification"),
        ({"packing": True}, "packing: a setting of the task language, but the task is classification"),
        ({"r_drop": 4.0}, r"r_drop: 4\.0 was given, but without dropout both passes are the same; set dropout"),
        ({"task": "language", "prompt_text": "News:"}, "prompt_text: only a prompt of ptuning2 without prefix_proj"),
        ({"task": "speech"}, "task: input should be 'classification' or 'language', found 'speech'"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(flags, said):
    with pytest.raises(InputError, match=said):
        load_settings(None, flags)


def test_a_prompt_starts_from_as_many_tokens_of_a_text_as_it_has(run):
    given = {"model": run / "model", "data": run / "answers.jsonl", "method": "ptuning2", "num_virtual_tokens": 3}
    task = open_language(FinetuneSettings(**given, prompt_text="one two three four five six"), QUIET)
    mindpet.get_peft_model(task.network, task.settings.peft_config())
    texts = [Tensor(np.array([[5, 2, 9]], np.int32)), Tensor(np.ones((1, 3), np.int32))]
    task.start_method()
    started = task.network(*texts).asnumpy()
    behind = [Tensor(np.concatenate([task.prompt, texts[0].asnumpy()], 1)), Tensor(np.ones((1, 6), np.int32))]
    mindpet.disable_adapter(task.network)
    np.testing.assert_allclose(started, task.network(*behind).asnumpy()[:, 3:], atol=1e-4)
    with pytest.raises(InputError, match=r"prompt_text: it has \d+ tokens?, and num_virtual_tokens is 3"):
        open_language(FinetuneSettings(**given, prompt_text="a"), QUIET)


def test_a_prefix_leaves_room_for_the_text(run, tmp_path):
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps({"text": f"{number} {'long ' * 20}"}) + "\n" for number in range(20)))
    given = {"model": run / "model", "data": data, "method": "ptuning2"}
    encoded = open_language(FinetuneSettings(**given, num_virtual_tokens=24), QUIET).encoded
    assert {batch.input_ids.shape[1] for batch in encoded.train.ordered()} == {64 - 24}
    with pytest.raises(InputError, match="num_virtual_tokens: 63 tokens leave no room for a text among the 64 posit"):
        open_language(FinetuneSettings(**given, num_virtual_tokens=63), QUIET)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_follow_one_with_the_whole(run):
    flags = ["--model", run / "model", "--data", run / "answers.jsonl", "--batch-size", 4, "--learning-rate", 0.01]
    for devices in (1, 2):
        command = [sys.executable, "-m", "mindpet.cli", "finetune", *flags, "--devices", devices]
        subprocess.run([*map(str, command), "--out", str(run / f"on{devices}")], check=True, timeout=300)
    one, two = ([entry["loss"] for entry in _entries(run / f"on{devices}") if "loss" in entry] for devices in (1, 2))
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert _metrics(run / "on2")["perplexity"] == pytest.approx(_metrics(run / "on1")["perplexity"], rel=1e-4)
