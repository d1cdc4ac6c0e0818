import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpet.train.serve import open_run
from tests.cli.runs import opened, run_program, write_run  # noqa: F401


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with runs of LoRA, their model and their data."""
    folder = tmp_path_factory.mktemp("export")
    write_run(folder, "mean")
    write_run(folder, "pooler", pooling="pooler")
    return folder


@pytest.fixture(scope="module")
def served(home):
    return open_run(home / "mean")


def test_an_adapter_has_the_names_and_values_that_peft_knows(home, tmp_path, capsys):
    out = tmp_path / "adapter"
    assert run_program("export", home / "pooler", "--format", "peft", "--out", out) == 0
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16)
    assert config["base_model_name_or_path"] == "tiny"
    exported = load_file(out / "adapter_model.safetensors")
    own = load_file(home / "pooler" / "adapter" / "adapter_model.safetensors")
    layer = "bert.encoder.layer.0.attention.self.query"
    for side in "ab":
        exported_name = f"base_model.model.{layer}.lora_{side.upper()}.weight"
        assert np.array_equal(exported[exported_name], own[f"{layer}.mindpet_delta_lora_{side}"])


def test_a_model_for_transformers_is_written_or_refused_where_it_would_compute_something_else(home, tmp_path, capsys):
    out = tmp_path / "model"
    assert run_program("export", home / "mean", "--format", "hf", "--out", out) == 2
    assert "the mean of the tokens" in capsys.readouterr().err
    assert not out.exists()
    assert run_program("export", home / "pooler", "--format", "hf", "--out", out) == 0
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]


@pytest.mark.usefixtures("opened")
def test_what_a_library_cannot_do_is_refused_or_said(home, tmp_path, capsys):
    out = tmp_path / "out"
    assert run_program("export", home / "mean", "--format", "peft", "--out", out) == 0
    assert "pooler" in capsys.readouterr().err
    assert run_program("export", home / "mean", "--format", "peft", "--out", out) == 2
    assert "overwrite" in capsys.readouterr().err
    assert run_program("export", home / "mean", "--format", "peft", "--out", out, "--overwrite") == 0
    assert run_program("export", home / "mean", "--format", "vllm", "--out", tmp_path / "vllm") == 2
    assert "vLLM" in capsys.readouterr().err
    given = ["--format", "peft", "--max-lora-rank", 32, "--out", tmp_path / "ranks"]
    assert run_program("export", home / "mean", *given) == 2
    assert "max_lora_rank is 32" in capsys.readouterr().err
    assert run_program("export", home / "mean", "--format", "adapters", "--out", tmp_path / "adapters") == 2
    assert "lora" in capsys.readouterr().err
    assert run_program("export", home / "mean", "--format", "onnx", "--out", tmp_path / "onnx") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_bottleneck_adapters_go_to_their_own_library(tmp_path):
    run = write_run(tmp_path, method="adapter", pooling="pooler")
    assert run_program("export", run, "--format", "peft", "--out", tmp_path / "peft") == 2
    assert run_program("export", run, "--format", "adapters", "--out", tmp_path / "adapters") == 0
    assert list((tmp_path / "adapters").rglob("*.safetensors"))


@pytest.mark.slow
def test_transformers_and_peft_give_the_logits_of_the_run(home, tmp_path):
    import mindspore
    import torch
    from peft import PeftModel
    from transformers import BertForSequenceClassification

    input_ids = np.random.default_rng(0).integers(0, 14, (3, 7))
    network = open_run(home / "pooler").network
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    ones = mindspore.Tensor(np.ones((3, 7), np.int32))
    expected = network(mindspore.Tensor(input_ids.astype(np.int32)), ones, 0 * ones).asnumpy()

    assert run_program("export", home / "pooler", "--format", "hf", "--out", tmp_path / "model") == 0
    model = BertForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert model.config.id2label == {0: "down", 1: "up"}
    np.testing.assert_allclose(model(torch.tensor(input_ids)).logits.detach(), expected, atol=1e-4)

    assert run_program("export", home / "pooler", "--format", "peft", "--out", tmp_path / "adapter") == 0
    base = BertForSequenceClassification.from_pretrained(home / "model", num_labels=2)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    np.testing.assert_allclose(tuned(torch.tensor(input_ids)).logits.detach(), expected, atol=1e-4)
