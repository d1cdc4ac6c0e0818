"""Run folders as `mindpet finetune` leaves them, made without training, and the program to be called on them."""

import sys

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindpet import get_peft_model, save_adapter
from mindpet.cli import main as program
from mindpet.models.auto import load_causal_lm
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train import serve
from mindpet.train.run_folder import RunFolder
from mindpet.train.settings import FinetuneSettings
from tests.tiny import write_bert, write_task
from tests.train.tiny_language import write_answers, write_language_model

LABELS = ("down", "up")


def write_run(home, name="run", labels=LABELS, **options):
    """Write a run of a tiny BERT into `home` / `name`, beside its model and its data, and return its folder.

    What it has trained is random, and not close to zero.
    """
    given = {"model": home / "model", "data": home / "task.jsonl", "out": home / name}
    settings = FinetuneSettings(**given | {"batch_size": 4, "max_length": 8, "seed": 3} | options)
    if not settings.model.exists():
        write_bert(settings.model)
    if not settings.data.exists():
        write_task(settings.data)
    network = BertForSequenceClassification.from_pretrained(
        settings.model, num_labels=len(labels), pooling=settings.pooling
    )
    return _write(network, settings, labels)


def write_language_run(home, name="run", **options):
    """Write a run of a tiny GPT-2 on prompts and completions, as `write_run` does."""
    given = {"model": home / "model", "data": home / "answers.jsonl", "out": home / name}
    settings = FinetuneSettings(**given | {"task": "language", "batch_size": 4, "seed": 3} | options)
    if not settings.model.exists():
        write_language_model(settings.model)
        write_answers(settings.data, "completion")
    return _write(load_causal_lm(settings.model, dropout=0.0), settings, ())


def _write(network, settings, labels):
    """Attach the method, give it random values, write the run folder, and return it."""
    get_peft_model(network, settings.peft_config())
    generator = np.random.default_rng(1)
    for parameter in network.trainable_params():
        parameter.set_data(Tensor(generator.normal(0, 0.5, parameter.shape).astype(np.float32)))
    folder = RunFolder(settings.out, overwrite=False)
    folder.create(settings.of_the_run(), labels)
    save_adapter(network, folder.adapter, base="tiny", data="task", metrics={"accuracy": 0.75})
    folder.write_metrics({"accuracy": 0.75})
    return settings.out


def run_program(*arguments):
    """Run the program in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mindpet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            program.main()
    return end.value.code


@pytest.fixture
def opened(monkeypatch, served):
    """Let commands take the module's `served` for the run that they name: reading and compiling take seconds."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    monkeypatch.setattr(serve, "open_run", lambda path, model=None, notify=None: served)
