import enum
import time
import warnings

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import mindpet.graph
from mindpet.graph import freeze_utils
from mindpet.graph.freeze_utils import (
    FreezeWarning,
    count_parameters,
    freeze_delta,
    freeze_from_config,
    freeze_modules,
)
from mindpet.utils.exceptions import ModelConfigFreezeInfoError, ReadYamlFileError
from tests.graph.networks import Network


def trainable(net):
    return {name for name, parameter in net.parameters_and_names() if parameter.requires_grad}


def all_paths(net):
    return {name for name, _ in net.parameters_and_names()}


def test_both_import_paths_give_the_same_functions():
    for name in ("freeze_delta", "freeze_modules", "freeze_from_config", "count_parameters"):
        assert getattr(mindpet.graph, name) is getattr(freeze_utils, name)


@pytest.mark.parametrize(
    ("include", "exclude", "frozen", "opened"),
    [
        (["*"], None, lambda path: True, lambda path: False),
        (["head.weight"], None, lambda path: path == "head.weight", lambda path: False),
        (["weight"], None, lambda path: False, lambda path: False),
        (["*HEAD*"], None, lambda path: False, lambda path: False),
        (["layers.?.dense.bias"], None, lambda path: path.endswith("dense.bias"), lambda path: False),
        (["layers.0.*", "head*"], None, lambda path: path.startswith(("layers.0.", "head")), lambda path: False),
        (None, ["*head*"], lambda path: False, lambda path: "head" in path),
        (["layers*"], ["head*"], lambda path: "layers" in path, lambda path: "head" in path),
        (["*"], ["*bias"], lambda path: not path.endswith("bias"), lambda path: False),
    ],
)
@pytest.mark.parametrize("initially", [True, False])
@pytest.mark.filterwarnings("ignore::mindpet.graph.FreezeWarning")
def test_freeze_modules_changes_what_exactly_one_list_matches(include, exclude, frozen, opened, initially):
    net = Network()
    for parameter in net.get_parameters():
        parameter.requires_grad = initially
    freeze_modules(net, include, exclude)
    expected = {path for path in all_paths(net) if opened(path) or (initially and not frozen(path))}
    assert trainable(net) == expected


class Mode(str, enum.Enum):
    LORA = "lora"
    LOUD = "BitFit"


@pytest.mark.parametrize(
    ("mode", "part"),
    [
        ("lora", "delta_lora_"),
        ("LoRA", "delta_lora_"),
        (Mode.LORA, "delta_lora_"),
        ("prefix", "delta_prefixtuning_"),
        ("PrefixTuning", "delta_prefixtuning_"),
        ("adapter", "delta_adapter_"),
        ("low_rank_adapter", "delta_low_rank_adapter_"),
        ("ptuning2", "delta_ptuning2_"),
        ("bitfit", "bias"),
        (Mode.LOUD, "bias"),
    ],
)
def test_freeze_delta_leaves_only_the_method(mode, part):
    net = Network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        freeze_delta(net, mode)
    assert trainable(net) == {path for path in all_paths(net) if part in path}


def test_freeze_delta_applies_the_lists_afterwards_and_takes_them_by_position():
    net = Network()
    freeze_delta(net, "lora", ["layers.1.*"], ["*head*"])
    assert trainable(net) == {
        "layers.0.mindpet_delta_lora_a",
        "layers.0.mindpet_delta_lora_b",
        "head.weight",
        "head.bias",
    }


def test_freeze_delta_leaves_the_frozen_parameters_of_the_method_alone():
    net = Network()
    freeze_modules(net, include=["*lora_b"])
    freeze_delta(net, "lora")
    assert trainable(net) == {"layers.0.mindpet_delta_lora_a", "layers.1.mindpet_delta_lora_a"}


@pytest.mark.parametrize("name", ["mindpet_delta_lora_A", "tk_delta_lora_a", "query.tk_delta_lora_B"])
def test_old_names_are_recognised(name):
    net = Network()
    net.head.weight.name = name
    freeze_delta(net, "lora", include=["layers*"])
    assert trainable(net) == {"head.weight"}


def test_a_pattern_matches_the_path_and_the_name_of_a_cell_swapped_in():
    net = Network()
    net.layers[0].dense = nn.Dense(2, 2)
    swapped = net.layers[0].dense
    assert swapped.weight.name == "dense.weight"
    freeze_modules(net, include=["layers.0.dense.weight", "dense.bias"])
    assert (swapped.weight.requires_grad, swapped.bias.requires_grad) == (False, False)


def test_a_shared_parameter_has_all_its_paths_and_counts_once():
    net = nn.CellList([nn.Dense(2, 3, has_bias=False), nn.Dense(2, 3, has_bias=False)])
    before = count_parameters(net).total
    net[1].weight = net[0].weight
    assert (before, count_parameters(net).total) == (12, 6)
    freeze_modules(net, include=["1.weight"])
    assert not net[0].weight.requires_grad
    freeze_modules(net, include=["0.weight"], exclude=["1.weight"])
    assert not net[0].weight.requires_grad


def test_count_parameters():
    net = Network()
    freeze_delta(net, "lora")
    count = count_parameters(net)
    assert (count.trainable, count.frozen, count.total) == (12, 42, 54)
    assert count.ratio == 12 / 54
    assert count_parameters(nn.ReLU()).ratio == 0.0
    with pytest.raises(AttributeError):
        count.trainable = 0


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("*heed*", "head"),
        ("layers.0.dense.wieght", "layers.0.dense.weight"),
        ("*.dense.baas", "dense.bias"),
        ("*mindpet_delta_laro_*", "mindpet_delta_lora_"),
    ],
)
def test_a_pattern_without_a_match_names_the_nearest(pattern, nearest):
    net = Network()
    with pytest.warns(FreezeWarning, match="matches no parameter") as caught:
        freeze_modules(net, include=[pattern])
    assert repr(pattern) in str(caught[0].message)
    assert nearest in str(caught[0].message)
    assert caught[0].filename == __file__
    assert trainable(net) == all_paths(net)


@pytest.mark.parametrize("mode", ["lora", "bitfit"])
def test_freezing_before_the_method_is_attached_is_reported(mode):
    with pytest.warns(FreezeWarning, match="leaves nothing") as caught:
        freeze_delta(nn.Dense(2, 2, has_bias=False), mode)
    assert caught[0].filename == __file__


def test_a_method_that_was_frozen_before_is_reported():
    net = Network()
    freeze_delta(net, "lora")
    with pytest.warns(FreezeWarning, match="frozen before"):
        freeze_delta(net, "adapter")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((None, "lora"), TypeError),
        (([], "lora"), TypeError),
        ((Network, "lora"), TypeError),
        (("net", None), ValueError),
        (("net", 3), ValueError),
        (("net", ""), ValueError),
        (("net", "loro"), ValueError),
        (("net", "r_drop"), ValueError),
        (("net", "lora", []), TypeError),
        (("net", "lora", None, []), TypeError),
        (("net", "lora", "*"), TypeError),
        (("net", "lora", ("*",)), TypeError),
        (("net", "lora", ["*"], [None]), TypeError),
        (("net", "lora", ["*", 1]), TypeError),
    ],
)
def test_freeze_delta_refuses(arguments, error):
    net = Network()
    with pytest.raises(error):
        freeze_delta(net if arguments[0] == "net" else arguments[0], *arguments[1:])
    assert trainable(net) == all_paths(net)


@pytest.mark.parametrize(
    ("model", "include", "exclude", "error"),
    [
        (None, ["*"], None, TypeError),
        ("net", None, None, ValueError),
        ("net", [], None, TypeError),
        ("net", None, [], TypeError),
        ("net", ["*"], [], TypeError),
        ("net", {"*"}, None, TypeError),
        ("net", "*", None, TypeError),
        ("net", [b"*"], None, TypeError),
    ],
)
def test_freeze_modules_refuses(model, include, exclude, error):
    net = Network()
    with pytest.raises(error):
        freeze_modules(net if model == "net" else model, include, exclude)
    assert trainable(net) == all_paths(net)


@pytest.mark.parametrize(
    "text",
    [
        "freeze:\n  include: ['*']\n  exclude: ['*head*']\n",
        "freeze:\n  include: ['layers*']\n",
        "freeze:\n  include: ['layers*']\n  exclude: null\n",
        "other: 1\nfreeze:\n  include: ['layers*']\n",
    ],
)
def test_freeze_from_config(tmp_path, text):
    path = tmp_path / "freeze.yaml"
    path.write_text(text, encoding="utf-8")
    net = Network()
    freeze_from_config(net, str(path))
    assert trainable(net) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ModelConfigFreezeInfoError),
        ("# nothing\n", ModelConfigFreezeInfoError),
        ("[1, 2]\n", ModelConfigFreezeInfoError),
        ("thaw:\n  include: ['*']\n", ModelConfigFreezeInfoError),
        ("freeze: ['*']\n", ModelConfigFreezeInfoError),
        ("freeze:\n", ModelConfigFreezeInfoError),
        ("freeze: {}\n", ModelConfigFreezeInfoError),
        ("freeze:\n  include: ['*']\n  extra: 1\n", ModelConfigFreezeInfoError),
        ("freeze:\n  include: null\n  exclude: null\n", ValueError),
        ("freeze:\n  include: '*'\n", TypeError),
        ("freeze:\n  include: []\n", TypeError),
        ("freeze:\n  include: [1]\n", TypeError),
        ("freeze: [\n", ReadYamlFileError),
        ("freeze: !!python/object:os.system {}\n", ReadYamlFileError),
    ],
)
def test_freeze_from_config_refuses_the_content(tmp_path, text, error):
    path = tmp_path / "freeze.yaml"
    path.write_text(text, encoding="utf-8")
    net = Network()
    with pytest.raises(error) as caught:
        freeze_from_config(net, str(path))
    assert caught.type is error
    assert trainable(net) == all_paths(net)


def test_freeze_from_config_refuses_the_path(tmp_path):
    net = Network()
    path = tmp_path / "freeze.yaml"
    path.write_text("freeze:\n  include: ['*']\n", encoding="utf-8")
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    for model, given, error in [
        (None, str(path), TypeError),
        (net, path, TypeError),
        (net, None, TypeError),
        (net, "", ValueError),
        (net, str(link), ReadYamlFileError),
        (net, str(tmp_path / "none.yaml"), ReadYamlFileError),
        (net, str(tmp_path), ReadYamlFileError),
    ]:
        with pytest.raises(error) as caught:
            freeze_from_config(model, given)
        assert caught.type is error
    assert trainable(net) == all_paths(net)


def test_ten_thousand_parameters_freeze_well_within_a_second():
    cell = nn.Cell()
    for layer in range(100):
        child = nn.Cell()
        for number in range(100):
            name = f"mindpet_delta_lora_{number}" if number < 4 else f"weight_{number}"
            child.insert_param_to_cell(name, ms.Parameter(ms.Tensor(np.zeros(1, np.float32)), name=name))
        cell.insert_child_to_cell(f"layer_{layer}", child)
    start = time.process_time()
    freeze_delta(cell, "lora", exclude=["*weight_9*", "layer_5.*"])
    seconds = time.process_time() - start
    assert count_parameters(cell).trainable == 100 * (4 + 11) + 96 - 11
    assert seconds < 1.0
