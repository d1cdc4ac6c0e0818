"""What export writes and refuses, without the other libraries."""

import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import load_file

import mindpet
from mindpet.tuning.exchange.own import read_own, write_own
from mindpet.tuning.exchange.report import UnverifiedAdapterWarning
from mindpet.utils.exceptions import InputError
from tests.methods import small_bert
from tests.tuning.exchange.damage import CONFIG, TENSORS, read_config
from tests.tuning.exchange.networks import Stack, adapter_values, fill, lora, outputs, snapshot, trained

START = "base_model.model."


def load(network, folder):
    with pytest.warns(UnverifiedAdapterWarning):
        mindpet.load_adapter(network, folder)
    return network


def test_room_for_others_is_not_written(tmp_path):
    roomy = mindpet.get_peft_model(Stack(), lora(modules_to_save=[]), max_rank=5, max_targets="all-linear")
    write_own(roomy, read_own(trained(Stack(), lora(modules_to_save=[]))))
    mindpet.export_adapter(roomy, tmp_path / "roomy")
    mindpet.export_adapter(trained(Stack(), lora(modules_to_save=[])), tmp_path / "plain")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "roomy" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    shapes = {name.removeprefix(START): value.shape for name, value in load_file(tmp_path / "roomy" / TENSORS).items()}
    assert shapes == {
        "first.lora_A.weight": (2, 6),
        "first.lora_B.weight": (8, 2),
        "second.lora_A.weight": (2, 8),
        "second.lora_B.weight": (5, 2),
    }


def test_of_several_adapters_the_active_one_is_written(tmp_path):
    network = trained(Stack(), lora(), max_rank=3)
    mindpet.add_adapter(network, "other", lora(r=3, lora_alpha=1, target_modules=["second"]))
    mindpet.set_adapter(network, "other")
    mindpet.export_adapter(network, tmp_path / "folder")
    config = read_config(tmp_path / "folder")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 1, ["second"])
    again = load(Stack(), tmp_path / "folder")
    assert adapter_values(again).keys() == {name for name in adapter_values(network) if "first" not in name}
    mindpet.set_adapter(network, "default")
    with pytest.warns(UnverifiedAdapterWarning):
        mindpet.load_adapter(network, tmp_path / "folder", adapter_name="third")
    np.testing.assert_array_equal(outputs(network), outputs(again))


def test_names_of_layers_find_only_those(tmp_path):
    class Twins(nn.Cell):
        def __init__(self):
            super().__init__()
            self.dense, self.inner = nn.Dense(2, 2), nn.CellDict({"first": nn.Dense(2, 2), "dense": nn.Dense(2, 2)})

    named = {}
    for number, config in enumerate(
        (
            mindpet.LoraConfig(r=1, target_modules=["dense"]),
            mindpet.LoraConfig(r=1, target_modules=["inner.*"]),
            mindpet.LoraConfig(r=1, target_modules="dense|other"),
            mindpet.IA3Config(target_modules=["dense"], feedforward_modules=["inner.dense"]),
            mindpet.IA3Config(target_modules=["dense"], feedforward_modules="dense|x"),
        )
    ):
        net = mindpet.get_peft_model(Twins(), config)
        mindpet.export_adapter(net, tmp_path / str(number))
        named[number] = [read_config(tmp_path / str(number)).get(f"{key}_modules") for key in ("target", "feedforward")]
        load(Twins(), tmp_path / str(number))
    assert named == {
        0: [["dense"], None],
        1: [["inner.first", "inner.dense"], None],
        2: ["dense", None],
        3: [["dense", "inner.dense"], ["inner.dense"]],
        4: [r"dense|inner\.dense", "dense"],
    }


PROMPTS = {
    "prefix tuning": mindpet.PrefixConfig(num_virtual_tokens=2, encoder_hidden_size=3, embed_dim=5),
    "P-Tuning v2": mindpet.PTuning2Config(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=3),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_training_goes_on_from_a_projected_prompt(tmp_path, name):
    network = trained(small_bert(), PROMPTS[name])
    mindpet.export_adapter(network, tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {
        CONFIG,
        TENSORS,
        "mindpet_projection.safetensors",
    }
    again = load(small_bert(), tmp_path / "folder")
    assert adapter_values(again) == adapter_values(network)
    mindpet.export_adapter(again, tmp_path / "again")
    for file in (tmp_path / "folder").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    other = trained(small_bert(), PROMPTS[name], seed=3)
    mindpet.export_adapter(other, tmp_path / "other")
    projection = tmp_path / "folder" / "mindpet_projection.safetensors"
    projection.write_bytes((tmp_path / "other" / projection.name).read_bytes())
    with pytest.raises(InputError, match="does not make the prompt_embeddings beside it"):
        mindpet.load_adapter(small_bert(), tmp_path / "folder")
    data = bytearray((tmp_path / "again" / projection.name).read_bytes())
    data[-1] ^= 64
    projection.write_bytes(data)
    with pytest.raises(InputError, match=r"differs from its own checksums|holds NaN"):
        mindpet.load_adapter(small_bert(), tmp_path / "folder")
    projection.unlink()
    alone = load(small_bert(), tmp_path / "folder")
    np.testing.assert_allclose(outputs(alone), outputs(network), rtol=1e-4, atol=1e-5)


def test_a_folder_is_replaced_only_when_told(tmp_path):
    network = trained(Stack(), lora())
    mindpet.save_adapter(network, tmp_path / "folder")
    before = (tmp_path / "folder" / CONFIG).read_bytes()
    with pytest.raises(InputError, match="holds an adapter already; pass overwrite=True"):
        mindpet.export_adapter(network, tmp_path / "folder")
    assert (tmp_path / "folder" / CONFIG).read_bytes() == before
    mindpet.export_adapter(network, tmp_path / "folder", overwrite=True)
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {CONFIG, TENSORS}
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        mindpet.export_adapter(network, tmp_path / "folder", overwrite=True)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    from mindpet.tuning.exchange import folder as module

    def fail(*arguments):
        raise InputError("no space")

    monkeypatch.setattr(module, "place_folder", fail)
    with pytest.raises(InputError, match="no space"):
        mindpet.export_adapter(trained(Stack(), lora()), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


class Picture(nn.Cell):
    """A convolution."""

    def __init__(self, **fields):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, has_bias=True, **fields)

    def construct(self, x):
        return self.conv(x)


BERT = small_bert


def conv(**fields):
    return lambda: Picture(**fields)


ON_CONV = mindpet.LoraConfig(r=2, target_modules=["conv"])
REFUSED = {
    "an adapter": (
        BERT,
        mindpet.AdapterConfig(bottleneck_size=2),
        "peft",
        r"give format='adapters' \(`mindpet export --format adapters`\), or keep it",
    ),
    "a low-rank adapter": (
        BERT,
        mindpet.LowRankAdapterConfig(reduction_factor=2),
        "peft",
        "no low-rank adapters, which cannot be merged either; keep it with mindpet.save_adapter",
    ),
    "BitFit": (BERT, mindpet.BitFitConfig(), "peft", "nothing like BitFit.*`mindpet merge`.*write_merged_model"),
    "two methods": (Stack, [lora(target_modules=["first"]), mindpet.BitFitConfig()], "peft", "combines lora, bitfit"),
    "a convolution that torch has not": (conv(stride=2), ON_CONV, "peft", "conv has pad_mode 'same' with the stride"),
    "a dilated convolution": (conv(dilation=2), ON_CONV, "peft", "conv has the dilation .* which LoRA in PEFT leaves"),
    "tokens and a head": (
        BERT,
        mindpet.TrainableTokensConfig(token_indices=(1,), modules_to_save=["classifier"]),
        "peft",
        "trainable tokens take no modules_to_save",
    ),
    "an unknown format": (Stack, lora(), "onnx", "format is 'onnx'; accepted are peft, vllm, adapters"),
    "a head for vLLM": (Stack, lora(), "vllm", r"modules_to_save is \['head'\], and vLLM takes no .* write base and"),
    "DoRA for vLLM": (Stack, lora(use_dora=True, modules_to_save=[]), "vllm", "use_dora is True"),
    "biases for vLLM": (Stack, lora(bias="all", modules_to_save=[]), "vllm", "bias is 'all'"),
    "ranks for vLLM": (Stack, lora(rank_pattern={"first": 3}, modules_to_save=[]), "vllm", "rank_pattern is"),
    "scales for vLLM": (Stack, lora(alpha_pattern={"first": 3}, modules_to_save=[]), "vllm", "alpha_pattern is"),
    "IA3 for vLLM": (BERT, mindpet.IA3Config(), "vllm", "vLLM serves LoRA only, and this is PEFT's IA3"),
    "a prefix for vLLM": (
        BERT,
        mindpet.PTuning2Config(num_virtual_tokens=2),
        "vllm",
        r"PREFIX_TUNING, which cannot be merged either; serve it with MindPet .* or train LoRA$",
    ),
    "a convolution for vLLM": (conv(), ON_CONV, "vllm", "belongs to a convolution"),
    "a large rank for vLLM": (
        Stack,
        lora(r=17, modules_to_save=[]),
        "vllm",
        "the rank is 17, and vLLM is started with at most 16; start it with --max-lora-rank 32 and give",
    ),
    "LoRA for adapters": (Stack, lora(), "adapters", "for bottleneck adapters, and attached is lora"),
    "an adapter elsewhere": (
        BERT,
        mindpet.AdapterConfig(bottleneck_size=2, target_modules=["query"]),
        "adapters",
        "query has a bottleneck, which the adapters library puts",
    ),
    "an activation that adapters has not": (
        BERT,
        mindpet.AdapterConfig(bottleneck_size=2, non_linearity="leakyrelu"),
        "adapters",
        "non_linearity is 'leakyrelu'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_another_library_would_compute_otherwise_is_refused(tmp_path, name):
    make, config, form, reason = REFUSED[name]
    network = fill(mindpet.get_peft_model(make(), config))
    before = snapshot(network)
    with pytest.raises(InputError, match=reason):
        mindpet.export_adapter(network, tmp_path / "folder", form)
    assert snapshot(network) == before
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_not_at_work_is_not_written(tmp_path):
    network = Stack()
    with pytest.raises(InputError, match="nothing is attached"):
        mindpet.export_adapter(network, tmp_path / "folder")
    trained(network, lora())
    mindpet.disable_adapter(network)
    with pytest.raises(InputError, match="is disabled"):
        mindpet.export_adapter(network, tmp_path / "folder")
    mindpet.enable_adapter(network)
    mindpet.merge(network)
    with pytest.raises(InputError, match=r"call mindpet\.unmerge before exporting"):
        mindpet.export_adapter(network, tmp_path / "folder")
    mindpet.unmerge(network)
    network.head.bias.set_data(Tensor(np.full(3, np.nan), mindspore.float32))
    with pytest.raises(InputError, match=r"head\.bias holds NaN"):
        mindpet.export_adapter(network, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_vllm_serves_plain_lora_up_to_its_rank(tmp_path):
    network = trained(Stack(), lora(r=20, modules_to_save=[], use_rslora=True))
    mindpet.export_adapter(network, tmp_path / "folder", "vllm", base="the/model", max_lora_rank=32)
    config = json.loads((tmp_path / "folder" / CONFIG).read_text())
    assert (config["r"], config["use_rslora"], config["base_model_name_or_path"]) == (20, True, "the/model")
    for given, reason in ((24, "vLLM takes 8, 16, 32"), (True, "vLLM takes"), ("32", "vLLM takes")):
        with pytest.raises(InputError, match=reason):
            mindpet.export_adapter(network, tmp_path / "other", "vllm", max_lora_rank=given)
    with pytest.raises(InputError, match="give it with format='vllm' only"):
        mindpet.export_adapter(network, tmp_path / "other", max_lora_rank=32)


def test_a_bottleneck_is_laid_out_as_the_adapters_library_does(tmp_path):
    network = trained(small_bert(), mindpet.AdapterConfig(bottleneck_size=5, modules_to_save=["classifier"]))
    mindpet.export_adapter(network, tmp_path / "folder", "adapters")
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    hidden = config["hidden_size"]
    assert int(hidden // config["config"]["reduction_factor"]) == 5
    assert (config["config"]["mh_adapter"], config["config"]["output_adapter"]) == (True, True)
    held = load_file(tmp_path / "folder" / "adapter.safetensors")
    name = "bert.encoder.layer.0.attention.output.adapters.default.adapter_down.0.weight"
    assert held[name].shape == (5, hidden)
    assert load_file(tmp_path / "folder" / "model_head.safetensors").keys() == {"classifier.weight", "classifier.bias"}


class Named(nn.Cell):
    """A cell with one other, under a name."""

    def __init__(self, name, cell):
        super().__init__()
        self.insert_child_to_cell(name, cell)


def test_a_name_that_fits_a_group_of_layers_too_is_given_as_a_path(tmp_path):
    groups = [Named("output", nn.Dense(2, 2)), Named("output", Named("dense", nn.Dense(2, 2)))]
    net = mindpet.get_peft_model(nn.CellList(groups), mindpet.LoraConfig(r=1, target_modules=["output"]))
    mindpet.export_adapter(net, tmp_path / "folder")
    assert read_config(tmp_path / "folder")["target_modules"] == ["0.output"]
