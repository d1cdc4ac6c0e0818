import json
import re

import mindspore
import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import save_file

import mindpet
from mindpet.graph import write_trainable
from mindpet.tuning.exchange.report import UnverifiedAdapterWarning
from mindpet.tuning.state import adapter_parameters
from mindpet.utils.exceptions import InputError
from tests.tuning.exchange.networks import Stack, adapter_values, lora, outputs, snapshot, trained

OPTIMIZER = {"learning_rate": 0.1, "beta1_power": 0.9, "global_step": 7}


@pytest.fixture(scope="module")
def source():
    return trained(Stack(), lora())


def tensors_of(network):
    return {name: Tensor(parameter.asnumpy()) for name, parameter in adapter_parameters(network).items()}


def save_ckpt(path, tensors):
    mindspore.save_checkpoint([{"name": name, "data": value} for name, value in tensors.items()], str(path))
    return path


def load_unverified(network, path):
    with pytest.warns(UnverifiedAdapterWarning, match="unverified: the file has no probe") as caught:
        report = mindpet.load_adapter(network, path)
    assert caught[0].filename == __file__
    assert not report.is_verified and report.outcome is None
    return report


SPELLINGS = {
    "ours": lambda name: name,
    "capitals": lambda name: name.replace("lora_a", "lora_A").replace("lora_b", "lora_B"),
    "tk_delta": lambda name: name.replace("mindpet_delta", "tk_delta"),
    "tk_delta with capitals": lambda name: re.sub(
        "mindpet_delta_lora_(.)", lambda m: f"tk_delta_lora_{m[1].upper()}", name
    ),
    "MindFormers 2": lambda name: name.replace("mindpet_delta_", ""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_checkpoint_loads_by_all_names_that_were_ever_written(tmp_path, source, spelling):
    tensors = {SPELLINGS[spelling](name): value for name, value in tensors_of(source).items()}
    network = trained(Stack(), lora(), seed=2)
    report = load_unverified(network, save_ckpt(tmp_path / "old.ckpt", tensors))
    assert adapter_values(network) == adapter_values(source)
    np.testing.assert_array_equal(outputs(network), outputs(source))
    assert report.has_effect and not report.attached


def test_the_state_of_the_optimizer_is_left_aside(tmp_path, source):
    tensors = tensors_of(source)
    moments = {f"{kind}.{name}": value for kind in ("adam_m", "moments") for name, value in tensors.items()}
    numbers = {name: Tensor(np.array(value)) for name, value in OPTIMIZER.items()}
    network = trained(Stack(), lora(), seed=2)
    load_unverified(network, save_ckpt(tmp_path / "old.ckpt", tensors | moments | numbers))
    assert adapter_values(network) == adapter_values(source)


def test_a_checkpoint_of_the_whole_network_proves_its_base(tmp_path, source):
    whole = {parameter.name: parameter for parameter in source.get_parameters() if "state" not in parameter.name}
    path = save_ckpt(tmp_path / "whole.ckpt", whole)
    network = trained(Stack(), lora(), seed=2)
    load_unverified(network, path)
    assert adapter_values(network) == adapter_values(source)
    other = trained(Stack(seed=4), lora(), seed=2)
    before = snapshot(other)
    with pytest.raises(InputError, match=r"first.bias is a part of the base, and the network's has other values"):
        mindpet.load_adapter(other, path)
    assert snapshot(other) == before


def test_a_checkpoint_of_version_two_loads_too(tmp_path, source):
    write_trainable(tensors_of(source), tmp_path / "new.ckpt")
    network = trained(Stack(), lora(), seed=2)
    load_unverified(network, tmp_path / "new.ckpt")
    assert adapter_values(network) == adapter_values(source)


def test_plain_tensors_load_too(tmp_path, source):
    save_file({name: value.asnumpy() for name, value in tensors_of(source).items()}, tmp_path / "bare.safetensors")
    network = trained(Stack(), lora(), seed=2)
    load_unverified(network, tmp_path / "bare.safetensors")
    assert adapter_values(network) == adapter_values(source)


BAD_CHECKPOINTS = {
    "one is missing": (lambda tensors: tensors.pop("head.bias"), "head.bias is missing"),
    "one too many": (lambda tensors: tensors.update({"third.bias": tensors["head.bias"]}), "third.bias is unknown"),
    "a copy of one": (
        lambda tensors: tensors.update({"copy.head.bias": tensors["head.bias"]}),
        "copy.head.bias is unknown",
    ),
    "two names for one": (
        lambda tensors: tensors.update({"first.tk_delta_lora_a": tensors["first.mindpet_delta_lora_a"]}),
        "gives first.mindpet_delta_lora_a under two names",
    ),
    "another rank": (
        lambda tensors: tensors.update({"first.mindpet_delta_lora_a": Tensor(np.ones((3, 6), np.float32))}),
        re.escape("is float32 [3, 6], and the network has float32 [2, 6]"),
    ),
    "NaN": (lambda tensors: tensors.update({"head.bias": Tensor(np.full(3, np.nan, np.float32))}), "holds NaN"),
    "whole numbers": (lambda tensors: tensors.update({"head.bias": Tensor(np.ones(3, np.int32))}), "is int32"),
    "nothing of an adapter": (lambda tensors: [tensors.pop(name) for name in list(tensors)[1:]], "is missing"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_and_changes_nothing(tmp_path, source, name):
    edit, message = BAD_CHECKPOINTS[name]
    tensors = tensors_of(source)
    edit(tensors)
    network = trained(Stack(), lora(), seed=2)
    before = snapshot(network)
    with pytest.raises(InputError, match=message):
        mindpet.load_adapter(network, save_ckpt(tmp_path / "bad.ckpt", tensors))
    assert snapshot(network) == before


def test_a_checkpoint_does_not_say_what_to_attach(tmp_path, source):
    network = Stack()
    with pytest.raises(InputError, match=r"old.ckpt does not say which methods .* attach them with get_peft_model"):
        mindpet.load_adapter(network, save_ckpt(tmp_path / "old.ckpt", tensors_of(source)))


MANIFEST = {
    "format": "mindformers_pynative_lora_adapter_v1",
    "base_fingerprint": "0123",
    "global_step": 7,
    "consumed_samples": 56,
    "lora_config": {
        "target_modules": "first|second",
        "lora_rank": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "lora_a_std": 0.01,
        "lora_b_std": 0.0,
    },
}


@pytest.fixture
def mindformers(tmp_path):
    """A folder as MindFormers 2 lays it out, of a network without a trained head."""
    network = trained(Stack(), lora(modules_to_save=[]))
    inner = tmp_path / "lora" / "iteration_00000007"
    inner.mkdir(parents=True)
    tensors = {
        name.replace("mindpet_delta_", ""): parameter.asnumpy()
        for name, parameter in adapter_parameters(network).items()
    }
    save_file(tensors, inner / "checkpoint-model-0000000-0000001.safetensors")
    moments = {f"adam_m.{name}": value for name, value in tensors.items()}
    save_file(moments, inner / "checkpoint-opt-0000000-0000001.safetensors")
    for folder in (inner, inner.parent):
        (folder / "mindformers_adapter_config.json").write_text(json.dumps(MANIFEST))
    (inner.parent / "latest_checkpointed_iteration.txt").write_text("7")
    return network, inner


@pytest.mark.parametrize("from_root", [True, False])
@pytest.mark.parametrize("is_attached", [True, False])
def test_mindformers_folder_loads(mindformers, from_root, is_attached):
    source, folder = mindformers
    network = trained(Stack(), lora(modules_to_save=[]), seed=2) if is_attached else Stack()
    report = load_unverified(network, folder.parent if from_root else folder)
    assert report.attached is not is_attached
    assert adapter_values(network) == adapter_values(source)
    np.testing.assert_array_equal(outputs(network), outputs(source))


def with_manifest(**changes):
    def edit(folder):
        manifest = MANIFEST | changes
        (folder / "mindformers_adapter_config.json").write_text(json.dumps(manifest))

    return edit


def with_settings(**changes):
    settings = {key: value for key, value in (MANIFEST["lora_config"] | changes).items() if value is not None}
    return with_manifest(lora_config=settings)


def add_file(name, **tensors):
    return lambda folder: save_file(tensors, folder / name)


PAIR = {"first.lora_a": np.ones((2, 6), np.float32)}
BAD_FOLDERS = {
    "another format": (with_manifest(format="v2"), "has the format 'v2' and a lora_config"),
    "no settings": (with_manifest(lora_config=None), "and no lora_config"),
    "no alpha": (with_settings(lora_alpha=None), "lora_config has no lora_alpha"),
    "an unknown field": (with_settings(lora_gamma=1), "no field .lora_gamma."),
    "another rank": (with_settings(lora_rank=4), re.escape("is float32 [2, 6], and the network has float32 [4, 6]")),
    "a part": (add_file("checkpoint-model-0000001-0000002.safetensors", **PAIR), "a second time, so it is a part"),
    "experts": (
        add_file("experts.safetensors", **{"experts.weight1_lora_a": np.ones((2, 2, 2), np.float32)}),
        "experts.weight1_lora_a is unknown to the network",
    ),
    "no tensors": (
        lambda folder: [path.unlink() for path in folder.glob("*-model-*")],
        "holds no LoRA of dense layers",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_mindformers_folder_is_refused_and_changes_nothing(mindformers, name):
    edit, message = BAD_FOLDERS[name]
    edit(mindformers[1])
    network = Stack()
    before = snapshot(network)
    with pytest.raises(InputError, match=message):
        mindpet.load_adapter(network, mindformers[1])
    assert snapshot(network) == before


@pytest.mark.parametrize("text", ["release", "", "../7"])
def test_a_tracker_of_another_kind_is_refused(mindformers, text):
    (mindformers[1].parent / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(InputError, match="expected is the number of an iteration"):
        mindpet.load_adapter(Stack(), mindformers[1].parent)
