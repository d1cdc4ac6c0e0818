import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mindpet
from mindpet.models.bert import BertForSequenceClassification
from mindpet.tuning.exchange.merged import merged_state, write_merged_model
from mindpet.utils.exceptions import InputError
from tests.tiny import write_bert
from tests.tuning.exchange.networks import fill, outputs, snapshot, values

CONFIGS = {
    "LoRA and a head": mindpet.LoraConfig(r=2, modules_to_save=["classifier"]),
    "BitFit": mindpet.BitFitConfig(),
}


def network(folder, config, **arguments):
    net = BertForSequenceClassification.from_pretrained(folder, num_labels=3, **arguments)
    return fill(mindpet.get_peft_model(net, config))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_merged_model_computes_what_base_and_adapter_do(tmp_path, name):
    source = write_bert(tmp_path / "base")
    net = network(source, CONFIGS[name])
    expected, before = outputs(net), values(net)
    write_merged_model(net, source, tmp_path / "out" / "merged")
    assert values(net) == before
    merged = BertForSequenceClassification.from_pretrained(tmp_path / "out" / "merged")
    assert not merged.head_is_new
    np.testing.assert_allclose(outputs(merged), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "merged" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and len(config["id2label"]) == 3
    assert (tmp_path / "out" / "merged" / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    held = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    state = merged_state(net)
    assert held.keys() == state.keys()
    assert all(np.array_equal(held[key], state[key]) for key in held)
    mindpet.merge(net)
    write_merged_model(net, source, tmp_path / "out" / "merged", overwrite=True)
    assert held.keys() == load_file(tmp_path / "out" / "merged" / "model.safetensors").keys()


def test_what_the_adapter_leaves_keeps_its_dtype_and_a_file_of_2018_gets_todays_names(tmp_path):
    import ml_dtypes

    source = write_bert(tmp_path / "base")
    file = source / "model.safetensors"
    halves = {name: value.astype(ml_dtypes.bfloat16) for name, value in load_file(file).items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): value for name, value in halves.items()}
    save_file(old, file)
    net = network(source, CONFIGS["LoRA and a head"])
    write_merged_model(net, source, tmp_path / "merged")
    held = load_file(tmp_path / "merged" / "model.safetensors")
    layer = "bert.encoder.layer.0.attention"
    assert (
        held[f"{layer}.output.LayerNorm.weight"].dtype.name == held[f"{layer}.self.key.weight"].dtype.name == "bfloat16"
    )
    assert held[f"{layer}.self.query.weight"].dtype == np.float32


def test_a_transposed_weight_is_written_as_it_was(tmp_path):
    source = write_bert(tmp_path / "base")
    net = network(source, CONFIGS["LoRA and a head"])
    file = source / "model.safetensors"
    held = load_file(file)
    query = "encoder.layer.0.attention.self.query.weight"
    save_file(held | {query: np.ascontiguousarray(held[query].T)}, file)
    write_merged_model(net, source, tmp_path / "merged")
    found = load_file(tmp_path / "merged" / "model.safetensors")[f"bert.{query}"]
    np.testing.assert_array_equal(found, merged_state(net)[f"bert.{query}"].T)


def test_another_pooling_than_that_of_transformers_is_said(tmp_path):
    source = write_bert(tmp_path / "base")
    net = network(source, CONFIGS["LoRA and a head"], pooling="mean")
    with pytest.warns(UserWarning, match="sees the network's 'mean' pooling"):
        write_merged_model(net, source, tmp_path / "merged")
    again = BertForSequenceClassification.from_pretrained(tmp_path / "merged", pooling="mean")
    np.testing.assert_allclose(outputs(again), outputs(net), rtol=1e-5, atol=1e-5)
    with pytest.warns(UserWarning, match="sees the network's 'mean' pooling"):
        mindpet.export_adapter(net, tmp_path / "adapter")


def occupied(tmp_path, source):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "notes.txt").write_text("mine")


REFUSED = {
    "nothing attached": (None, lambda tmp_path, source: None, "nothing is attached"),
    "no linear method": (mindpet.AdapterConfig(bottleneck_size=2), lambda tmp_path, source: None, "cannot be merged"),
    "another base": (
        CONFIGS["BitFit"],
        lambda tmp_path, source: write_bert(source, seed=1),
        "is not the model that the network was loaded from",
    ),
    "another network's files": (
        CONFIGS["BitFit"],
        lambda tmp_path, source: save_file({"x.weight": np.ones(3, np.float32)}, source / "model.safetensors"),
        "is not the model that the network was loaded from",
    ),
    "an occupied folder": (CONFIGS["BitFit"], occupied, "holds other files already"),
    "a file": (CONFIGS["BitFit"], lambda tmp_path, source: (tmp_path / "merged").write_text(""), "is a file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_and_nothing_changes(tmp_path, name):
    config, change, reason = REFUSED[name]
    source = write_bert(tmp_path / "base")
    net = BertForSequenceClassification.from_pretrained(source, num_labels=3)
    if config is not None:
        fill(mindpet.get_peft_model(net, config))
    change(tmp_path, source)
    before, files = snapshot(net), sorted(Path(tmp_path).rglob("*"))
    with pytest.raises(InputError, match=reason):
        write_merged_model(net, source, tmp_path / "merged")
    assert snapshot(net) == before
    assert sorted(Path(tmp_path).rglob("*")) == files
