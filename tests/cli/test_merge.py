import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindpet.data.tokenizer import load_tokenizer
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train import exporting
from mindpet.train.finetune import finetune
from mindpet.train.serve import open_run
from mindpet.train.settings import FinetuneSettings
from tests.cli.runs import run_program, write_run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run of LoRA, its model and its data."""
    folder = tmp_path_factory.mktemp("merge")
    write_run(folder)
    return folder


def _logits(network):
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    input_ids = np.random.default_rng(0).integers(0, 14, (3, 7), np.int32)
    ones = np.ones_like(input_ids)
    return network.set_train(False)(Tensor(input_ids), Tensor(ones), Tensor(0 * ones)).asnumpy()


def _read(folder, pooling="mean"):
    return BertForSequenceClassification.from_pretrained(folder, pooling=pooling)


def test_the_merged_folder_gives_what_base_and_adapter_give(home, tmp_path, capsys):
    out = tmp_path / "models" / "news"
    assert run_program("merge", home / "run", "--out", out, "--verify") == 0
    printed = capsys.readouterr()
    assert "2 layers merged" in printed.out
    assert "Largest difference of a logit" in printed.out
    assert "applied from" in printed.err
    expected = _logits(open_run(home / "run").network)
    merged = _read(out)
    assert not merged.head_is_new
    np.testing.assert_allclose(_logits(merged), expected, rtol=1e-5, atol=1e-5)
    assert (_logits(BertForSequenceClassification.from_pretrained(home / "model", 2, "mean")) != expected).any()
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "down", "1": "up"}
    assert config["label2id"] == {"down": 0, "up": 1}
    load_tokenizer(out)
    assert [entry.name for entry in out.parent.iterdir()] == ["news"]


def test_a_folder_with_other_logits_ends_with_1_and_is_not_written(home, tmp_path, monkeypatch, capsys):
    write = exporting.write_merged_model

    def write_other_values(network, source, folder):
        network.classifier.weight.set_data(network.classifier.weight * 1.01)
        write(network, source, folder)

    monkeypatch.setattr(exporting, "write_merged_model", write_other_values)
    assert run_program("merge", home / "run", "--out", tmp_path / "out", "--verify") == 1
    assert "was not written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_kept_unless_overwrite_is_given(home, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_program("merge", home / "run", "--out", out) == 0
    (out / "config.json").write_text("{}")
    assert run_program("merge", home / "run", "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / "config.json").read_text() == "{}"
    assert run_program("merge", home / "run", "--out", out, "--overwrite") == 0
    assert (out / "config.json").read_text() != "{}"
    (out / "notes.md").touch()
    assert run_program("merge", home / "run", "--out", out, "--overwrite") == 2
    assert "notes.md" in capsys.readouterr().err
    assert run_program("merge", home / "run", "--out", home / "run", "--overwrite") == 2


def test_a_method_that_is_no_change_of_weights_is_refused(tmp_path, capsys):
    run = write_run(tmp_path, method="ptuning2", num_virtual_tokens=2)
    assert run_program("merge", run, "--out", tmp_path / "out") == 2
    assert "ptuning2 at" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_float16_run_merges_in_float16(tmp_path):
    run = write_run(tmp_path, dtype="float16")
    assert run_program("merge", run, "--out", tmp_path / "out", "--verify") == 0


@pytest.mark.slow
def test_a_run_of_full_fine_tuning_gives_its_model(home, tmp_path):
    from rich.console import Console

    out = tmp_path / "run"
    settings = FinetuneSettings(
        model=home / "model", data=home / "task.jsonl", out=out, method="full", epochs=1, batch_size=8, baselines=False
    )
    finetune(settings, Console(quiet=True))
    assert run_program("merge", out, "--out", tmp_path / "out", "--verify") == 0
    expected = _logits(open_run(out).network)
    np.testing.assert_allclose(_logits(_read(tmp_path / "out")), expected, rtol=1e-5, atol=1e-5)
