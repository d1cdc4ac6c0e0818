import importlib.util
import json
import struct

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from mindpet.train import finetune as module
from mindpet.train.finetune import finetune
from mindpet.train.settings import FinetuneSettings
from mindpet.utils.exceptions import InputError
from tests.tiny import write_bert, write_task

QUIET = Console(quiet=True)


def _scalars(folder):
    """Return (name, step, value) of all scalars that TensorBoard finds below a folder, in their order."""
    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def test_tensorboard_has_each_step_of_the_log_once_after_a_resume_too(monkeypatch, tmp_path):
    write_bert(tmp_path / "model")
    given = {"model": tmp_path / "model", "data": write_task(tmp_path / "task.jsonl"), "out": tmp_path / "run"}

    class Stopping(module.TrainStep):
        def __call__(self, batch):
            outcome = super().__call__(batch)
            if int(self._count.asnumpy()) == 8:
                raise KeyboardInterrupt
            return outcome

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "TrainStep", Stopping)
        settings = FinetuneSettings(**given, batch_size=8, epochs=2, baselines=False, report_to="tensorboard")
        finetune(settings, QUIET)
    before = _scalars(tmp_path / "run" / "tensorboard")
    assert len([name for name, _, _ in before if name == "loss"]) == 7, "one more than was saved"
    assert finetune(FinetuneSettings(out=given["out"], resume=True), QUIET).finished
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    expected = [
        (name, entry["step"], pytest.approx(entry[name]))
        for entry in entries
        for name in ("loss", "learning_rate", "valid_accuracy")
        if name in entry
    ]
    assert _scalars(tmp_path / "run" / "tensorboard") == expected


def test_a_missing_package_is_named_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install tensorboardX"):
        finetune(FinetuneSettings(out=tmp_path / "run", report_to="tensorboard"), QUIET)
    assert not (tmp_path / "run").exists()
