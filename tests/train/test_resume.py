import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
import yaml
from rich.console import Console
from safetensors.numpy import load_file

from mindpet import kernels
from mindpet.cli import main as program
from mindpet.delta.lora import LoRADense
from mindpet.kernels.switch import missing
from mindpet.train import finetune as module
from mindpet.train.finetune import finetune
from mindpet.train.loop import Position
from mindpet.train.record import TIMES
from mindpet.train.resume import Origin, SavedRun, read_run, write_run
from mindpet.train.settings import FinetuneSettings
from mindpet.utils.exceptions import InputError
from tests.scale import REPETITION
from tests.tiny import write_bert, write_task

QUIET = Console(quiet=True)
STEPS_PER_EPOCH = 6


def _settings(tmp_path, out, **changes):
    given = {"model": tmp_path / "model", "data": tmp_path / "task.jsonl", "out": tmp_path / out, "batch_size": 8}
    given |= {"epochs": 2, "baselines": False, "learning_rate": 0.02, "head_learning_rate": 0.05}
    return FinetuneSettings(**given | changes)


@pytest.fixture
def task(tmp_path):
    write_bert(tmp_path / "model")
    write_task(tmp_path / "task.jsonl")
    return tmp_path


def _stop_at(monkeypatch, step):
    """Send this process SIGTERM while step number `step` runs."""

    class Stopping(module.TrainStep):
        count = 0

        def __call__(self, batch):
            Stopping.count += 1
            if Stopping.count == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(batch)

    monkeypatch.setattr(module, "TrainStep", Stopping)


def _entries(folder):
    """Return the log without the times, which no run has twice."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def _accuracies(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["accuracy"], metrics["valid_accuracy"], metrics["skipped_steps"]


def _assert_same_run(one, other):
    assert _entries(one) == _entries(other)
    assert _accuracies(one) == _accuracies(other)
    values, others = (load_file(folder / "resume.safetensors") for folder in (one, other))
    assert values.keys() == others.keys()
    for name in values:
        np.testing.assert_array_equal(values[name], others[name], err_msg=name)


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        pytest.param({}, 4, marks=REPETITION),
        ({"lora_dropout": 0.1, "dropout": 0.1, "r_drop": 4.0}, STEPS_PER_EPOCH),
        ({"dtype": "float16", "lora_dropout": 0.1}, STEPS_PER_EPOCH + 2),
    ],
    ids=["plain", "dropouts and R-Drop, stopped before an epoch's evaluation", "float16"],
)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one_bit_for_bit(monkeypatch, task, changes, stop):
    assert finetune(_settings(task, "whole", **changes), QUIET).finished
    with monkeypatch.context() as patch:
        _stop_at(patch, stop)
        assert not finetune(_settings(task, "parts", **changes), QUIET).finished
    saved = read_run(task / "parts" / "resume.safetensors")
    assert saved.position == Position((stop - 1) // STEPS_PER_EPOCH + 1, (stop - 1) % STEPS_PER_EPOCH + 1)
    outcome = finetune(FinetuneSettings(out=task / "parts", resume=True), QUIET)
    assert outcome.finished
    assert len([entry for entry in _entries(task / "parts") if "loss" in entry]) == 2 * STEPS_PER_EPOCH
    _assert_same_run(task / "whole", task / "parts")
    assert outcome.metrics["epochs"] == 2
    assert outcome.checkpoint.endswith(f"2_{STEPS_PER_EPOCH}.ckpt")


@pytest.mark.skipif(missing() is not None, reason=f"no native kernels here: {missing()}")
def test_native_kernels_train_as_plain_ones_and_are_named_and_kept(task, capsys):
    before, losses = kernels.kernels_in_use(), []
    for kind in ("off", "f32"):
        outcome = finetune(_settings(task, kind, epochs=1, kernels=kind), Console(stderr=True))
        assert kernels.kernels_in_use() == before
        assert yaml.safe_load((task / kind / "settings.yaml").read_text())["kernels"] == kind
        assert ("kernels f32: native 2 LoRADense, 5 Dense" in capsys.readouterr().err) == (kind == "f32")
        assert type(outcome.task.network.bert.encoder.layer[0].attention.self.query) is LoRADense
        losses.append([entry["loss"] for entry in _entries(task / kind) if "loss" in entry])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    with pytest.raises(InputError, match=r"kernels: 'off' was given, but the run in .* has 'f32'"):
        finetune(FinetuneSettings(out=task / "f32", resume=True, kernels="off"), QUIET)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with a model, a task and a run that was stopped after two of twelve steps, by its path."""
    folder = tmp_path_factory.mktemp("stopped")
    write_bert(folder / "model")
    write_task(folder / "task.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        _stop_at(patch, 2)
        finetune(_settings(folder, "run"), QUIET)
    return folder


@pytest.fixture
def copy(stopped, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)


def _contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


_REPLACED = {
    "other text": (" the", " film"),
    "other labels": ('very", "label": "up"', 'very", "label": "down"'),
    "other label name": ('"up"', '"upwards"'),
}


def _spoil(folder, what):
    """Change one thing of a stopped run and return what `finetune` is then given besides `out` and `resume`."""
    run = folder / "run"
    state, log = run / "resume.safetensors", run / "log.jsonl"
    if what == "other setting":
        return {"epochs": 3}
    if what == "overwrite too":
        return {"overwrite": True}
    if what == "settings.yaml":
        settings = yaml.safe_load((run / "settings.yaml").read_text())
        (run / "settings.yaml").write_text(yaml.safe_dump(settings | {"learning_rate": 0.5}))
    elif what in _REPLACED:
        task = folder / "task.jsonl"
        task.write_text(task.read_text().replace(*_REPLACED[what]))
        return {"data": task}
    elif what == "other model":
        write_bert(folder / "other", seed=1)
        return {"model": folder / "other"}
    elif what == "torn state":
        state.write_bytes(state.read_bytes()[:-1])
    elif what == "rotten tensor":
        _flip(state, -1)
    elif what == "rotten description":
        _flip(state, state.read_bytes().index(b"position") + 2)
    elif what == "other file":
        shutil.copy(folder / "model" / "model.safetensors", state)
    elif what == "short log":
        log.write_text(log.read_text().splitlines()[0] + "\n")
    elif what == "spoilt log":
        log.write_text("{}\n" + log.read_text().split("\n", 1)[1])
    elif what == "finished, no state":
        state.unlink()
        (run / "metrics.json").write_text("{}")
    elif what == "no run":
        (run / "settings.yaml").unlink()
    return {}


def _flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("other setting", r"epochs: 3 was given, but the run in .*run has 2; leave the setting out"),
        ("overwrite too", "overwrite and resume: both were given"),
        ("settings.yaml", r"saved with learning_rate 0\.02, and its settings now say 0\.5"),
        ("other text", "the data is not what it was"),
        ("other labels", "the data is not what it was"),
        ("other label name", "the data is not what it was"),
        ("other model", "the model is not what it was"),
        ("torn state", r"resume\.safetensors.*damaged"),
        ("rotten tensor", r"resume\.safetensors is damaged: .* differs from its checksum; start again"),
        ("rotten description", r"resume\.safetensors is damaged: its description"),
        ("other file", "is no state of a run"),
        ("short log", r"log\.jsonl: 1 lines, but resume\.safetensors was saved after 2"),
        ("spoilt log", r"log\.jsonl, line 1: neither a step nor an epoch"),
        ("finished, no state", "the run is finished and its resume.safetensors was removed"),
        ("no run", r"not resumed, as it is no earlier run"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_left_as_it_is(copy, what, said):
    given = _spoil(copy, what)
    before = _contents(copy / "run")
    with pytest.raises(InputError, match=said):
        finetune(FinetuneSettings(out=copy / "run", resume=True, **given), QUIET)
    assert _contents(copy / "run") == before


def test_moved_folders_may_be_resumed(copy):
    moved = copy / "moved"
    moved.mkdir()
    for name in ("run", "model", "task.jsonl"):
        (copy / name).rename(moved / name)
    given = {"out": moved / "run", "model": moved / "model", "data": moved / "task.jsonl", "batch_size": 8}
    assert finetune(FinetuneSettings(resume=True, **given), QUIET).finished
    settings = yaml.safe_load((moved / "run" / "settings.yaml").read_text())
    assert settings["model"] == str(moved / "model")
    assert not settings.keys() & {"resume", "overwrite"}


@pytest.mark.parametrize("left", [pytest.param("nothing", marks=REPETITION), "settings", "an empty folder"])
def test_a_run_that_was_killed_before_its_first_state_begins_anew(copy, left, capsys):
    run = copy / "run"
    (run / "resume.safetensors").unlink()
    if left != "settings":
        shutil.rmtree(run)
    if left == "an empty folder":
        run.mkdir()
        (run / ".0123.tmp").write_text("half the settings")
    console = Console(stderr=True, width=200)
    given = {} if left == "settings" else _settings(copy, "run").model_dump(exclude_unset=True)
    assert finetune(FinetuneSettings(**given | {"out": run, "resume": True}), console).finished
    assert "starting from the beginning" in capsys.readouterr().err
    assert len(_entries(run)) == 2 * (STEPS_PER_EPOCH + 1)


def test_a_finished_run_is_evaluated_only(monkeypatch, copy, capsys):
    run = copy / "run"
    finetune(FinetuneSettings(out=run, resume=True), QUIET)
    metrics, log = json.loads((run / "metrics.json").read_text()), (run / "log.jsonl").read_text()
    monkeypatch.setattr(sys, "argv", ["mindpet", "finetune", "--out", str(run), "--resume", "--batch-size", "8"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    printed = capsys.readouterr()
    assert "only the evaluation is made" in printed.err
    assert f"{metrics['accuracy']:.3f}" in printed.out
    again = json.loads((run / "metrics.json").read_text())
    assert again | {"peak_memory_mb": 0} == metrics | {"peak_memory_mb": 0}
    assert (run / "log.jsonl").read_text() == log
    assert sorted(path.name for path in (run / "checkpoints").glob("*.ckpt")) == [
        "DELTA_CKP_1-1_6.ckpt",
        "DELTA_CKP_1-2_6.ckpt",
    ]


def test_what_a_killed_process_left_is_removed_and_the_parts_of_a_run_count_together(copy):
    before = [json.loads(line)["seconds"] for line in (copy / "run" / "log.jsonl").read_text().splitlines()]
    (copy / "run" / ".0123.tmp").write_text("half a state")
    with (copy / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "epo')
    outcome = finetune(FinetuneSettings(out=copy / "run", resume=True), QUIET)
    assert outcome.finished
    assert not list((copy / "run").glob(".*"))
    assert len(_entries(copy / "run")) == 2 * (STEPS_PER_EPOCH + 1)
    metrics = outcome.metrics
    lines = [json.loads(line) for line in (copy / "run" / "log.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "loss" in line]
    assert seconds[:2] == before
    assert metrics["train_seconds"] == pytest.approx(sum(seconds))
    kept = sorted(path.name for path in (copy / "run" / "checkpoints").glob("*.ckpt"))
    assert kept == ["DELTA_CKP-1_2.ckpt", "DELTA_CKP_1-1_6.ckpt", "DELTA_CKP_1-2_6.ckpt"]


def test_a_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    state = SavedRun(Origin({}, "d", "m"), Position(1, 2), {}, 1.0, {"weight": np.arange(6, dtype=np.float32)})
    write_run(tmp_path / "state", state)
    before = (tmp_path / "state").read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_run(tmp_path / "state", state)
    assert (tmp_path / "state").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_no_flipped_bit_and_no_cut_goes_unseen(tmp_path):
    state = SavedRun(Origin({"r": 1}, "d", "m"), Position(1, 2), {}, 1.0, {"a": np.arange(6, dtype=np.float32)})
    write_run(tmp_path / "state", state)
    whole = (tmp_path / "state").read_bytes()
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            (tmp_path / "state").write_bytes(damaged)
            with pytest.raises(InputError):
                read_run(tmp_path / "state")
