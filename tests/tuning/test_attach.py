import copy
import functools
import types
from collections import OrderedDict

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, mint, nn
from mindspore import dtype as mstype

import mindpet
from mindpet.delta.lora import LoRADense
from mindpet.graph.freeze_utils import count_parameters, freeze_delta, freeze_modules
from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.config import AdapterConfig, BitFitConfig, IA3Config, LoraConfig, PrefixConfig, PTuning2Config
from mindpet.tuning.places import Place
from mindpet.tuning.registry import METHODS
from mindpet.tuning.state import adapter_parameters, require_state, state_of
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK
from tests.methods import (
    CHANGES_THE_START,
    EACH_KIND,
    EVERY_METHOD,
    EVERY_METHOD_TRAINED,
    FIELDS,
    batch,
    config_of,
    move_adapter,
    small_bert,
)
from tests.scale import REPETITION


class _Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query = nn.Dense(4, 4)
        self.key = nn.Dense(4, 4)
        self.value = nn.Dense(4, 4, activation="tanh")

    def construct(self, x):
        return self.query(x) + self.key(x) * self.value(x)


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.blocks = nn.CellList([_Block(), _Block()])
        self.sequence = nn.SequentialCell(nn.Dense(4, 4), nn.ReLU())
        self.shared = self.sequence[0]
        self.again = self.shared
        self.classifier = nn.Dense(4, 2)

    def construct(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.sequence(x) + self.shared(x) + self.again(x))


def _input():
    return Tensor(np.random.default_rng(0).normal(size=(3, 4)), mstype.float32)


def _attach(network, **fields):
    return get_peft_model(network, LoraConfig(**{"target_modules": ["query", "value"]} | fields))


def _picture(network):
    """Return all that must stay as it was when attaching fails."""
    cells = {path: cell for path, cell in network.cells_and_names()}
    return (
        [(path, id(cell), cell.training, list(cell.name_cells())) for path, cell in cells.items()],
        [(path, cell.prefix) for path, cell in cells.items() if hasattr(cell, "prefix")],
        [(id(item), item.name, item.requires_grad, item.asnumpy().tobytes()) for item in network.get_parameters()],
        state_of(network),
    )


def test_every_method_has_a_case():
    assert set(FIELDS) <= set(METHODS)
    assert all(method.name == name == method.config.method for name, method in METHODS.items())


@EVERY_METHOD
def test_state_is_not_counted_however_a_wrapper_renames_it(method):
    network = get_peft_model(small_bert(), config_of(method))
    counted = count_parameters(network)
    wrapped = nn.SequentialCell(network)
    assert all(parameter.name.startswith("0.") for parameter in network.get_parameters())
    assert count_parameters(wrapped) == counted


@EVERY_METHOD_TRAINED
def test_the_start_is_exact_or_said_to_differ_and_only_what_is_trained_moves(method, mode):
    network = get_peft_model(small_bert(), config_of(method))
    difference = np.abs(network(*batch()).asnumpy() - _plain_output(mode)).max()
    assert (difference > 1e-7) == (method in CHANGES_THE_START)
    assert ("hanges the network's output" in METHODS[method].config.__doc__) == (method in CHANGES_THE_START)
    before = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    trained = {parameter.name for parameter in network.trainable_params()}
    step = nn.TrainOneStepCell(_Loss(network), nn.Adam(network.trainable_params(), 0.01))
    step.set_train()
    losses = [float(step(*batch()).asnumpy()) for _ in range(3)]
    assert losses[2] < losses[0]
    moved = {item.name for item in network.get_parameters() if (item.asnumpy() != before[item.name]).any()}
    # No gradient reaches a key's bias: it shifts all scores of a position alike.
    assert moved <= trained
    assert all(".key.bias" in name for name in trained - moved)


@functools.cache
def _plain_output(mode):
    """Return the output of the small BERT in the mode that is set."""
    return small_bert()(*batch()).asnumpy()


class _Loss(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, ids, mask, types):
        logits = self.network(ids, mask, types)
        return ((logits - 1.0) ** 2).mean()


def test_a_low_rank_adapter_may_start_exact():
    network = small_bert()
    before = network(*batch()).asnumpy()
    get_peft_model(network, config_of("low_rank_adapter", up_init="zeros"))
    np.testing.assert_array_equal(network(*batch()).asnumpy(), before)


@EVERY_METHOD
def test_the_networks_own_parameters_stay_the_same_objects_under_the_same_names(method):
    network = small_bert(layers=2)
    before = {parameter.name: id(parameter) for parameter in network.get_parameters()}
    assert get_peft_model(network, config_of(method, modules_to_save=["classifier"])) is network
    after = {parameter.name: parameter for parameter in network.get_parameters()}
    assert before.items() <= {name: id(parameter) for name, parameter in after.items()}.items()
    added = {name for name in set(after) - set(before) if "mindpet_state_" not in name}
    assert all(f"mindpet_delta_{method}" in name for name in added)
    trained = {parameter.name for parameter in network.trainable_params()}
    own = {"classifier.weight", "classifier.bias"}
    if method == "bitfit":
        own |= {name for name in before if name.endswith("bias")}
    assert trained == added | own == set(adapter_parameters(network))
    assert {name for name in after if "mindpet_state_" in name}.isdisjoint(trained)


@EVERY_METHOD
def test_detaching_gives_the_plain_network_back(method):
    network = small_bert(layers=2)
    network.bert.pooler.dense.weight.requires_grad = False
    before = _picture(network)
    get_peft_model(network, config_of(method))
    detach(network)
    assert _picture(network) == before


@EACH_KIND
def test_a_copy_of_the_network_has_a_state_of_its_own(method):
    network = get_peft_model(small_bert(), config_of(method, modules_to_save=["classifier"]))
    twin = copy.deepcopy(network)
    assert state_of(twin) is not state_of(network)
    cells = {id(cell) for _, cell in twin.cells_and_names()}
    assert all(id(item.cell) in cells for item in (*state_of(twin).replacements, *state_of(twin).feeds))
    assert all(id(place.parent) in cells for item in state_of(twin).replacements for place in item.places)
    detach(twin)
    assert state_of(network) is not None and adapter_parameters(network)
    np.testing.assert_array_equal(twin(*batch()).asnumpy(), small_bert()(*batch()).asnumpy())


def test_a_shared_layer_is_replaced_once_at_all_its_places():
    network = _attach(_Network(), target_modules=["sequence.0"])
    assert isinstance(network.shared, LoRADense)
    assert network.shared is network.sequence[0] is network.again
    assert len(require_state(network).replacements[0].places) == 3
    detach(network)
    assert type(network.shared) is nn.Dense
    assert network.shared is network.sequence[0] is network.again


class _Containers(nn.Cell):
    def __init__(self):
        super().__init__()
        same = nn.Dense(4, 4)
        self.numbered = nn.SequentialCell(nn.Dense(4, 4), nn.ReLU(), same, same)
        self.named = nn.SequentialCell(OrderedDict(first=nn.Dense(4, 4), second=nn.ReLU(), third=nn.Dense(4, 4)))
        self.dictionary = nn.CellDict({"one": nn.Dense(4, 4), "two": nn.Dense(4, 4)})
        self.listed = nn.CellList([nn.Dense(4, 4), same])

    def construct(self, x):
        x = self.dictionary["two"](self.dictionary["one"](self.named(self.numbered(x))))
        return self.listed[1](self.listed[0](x))


def test_layers_in_containers_of_every_kind_are_replaced_and_put_back():
    network = _Containers()
    before = network(_input()).asnumpy()
    picture = _picture(network)
    get_peft_model(network, LoraConfig(r=2, target_modules="all-linear"))
    assert not [path for path, cell in network.cells_and_names() if type(cell) is nn.Dense]
    assert network.numbered[2] is network.numbered[3] is network.listed[1]
    np.testing.assert_array_equal(network(_input()).asnumpy(), before)
    move_adapter(network)
    assert np.abs(network(_input()).asnumpy() - before).max() > 1e-3
    detach(network)
    assert _picture(network) == picture
    np.testing.assert_array_equal(network(_input()).asnumpy(), before)


def test_a_layer_that_hangs_twice_under_names_of_a_sequence_is_refused():
    same = nn.Dense(4, 4)
    network = nn.SequentialCell(OrderedDict(first=same, second=same))
    before = _picture(network)
    with pytest.raises(InputError, match=r"first hangs twice in one nn\.SequentialCell"):
        get_peft_model(network, LoraConfig(target_modules="all-linear"))
    assert _picture(network) == before


def test_the_branches_draw_their_first_values_in_the_order_of_the_network():
    mindspore.set_seed(0)
    network = _attach(_Network(), target_modules=["value", "query", "key"])
    found = [cell.mindpet_delta_lora_a for _, cell in network.cells_and_names() if isinstance(cell, LoRADense)]
    mindspore.set_seed(0)
    plain = _Network()  # draws too
    expected = [
        LoRADense.from_dense(layer, LoraConfig().r, LoraConfig().lora_alpha).mindpet_delta_lora_a
        for block in plain.blocks
        for layer in (block.query, block.key, block.value)
    ]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


# A failure half-way


_COMBINED = [LoraConfig(r=2), AdapterConfig(bottleneck_size=2), BitFitConfig(modules_to_save=["classifier"])]


@pytest.mark.parametrize(
    "configs", [_COMBINED, [PrefixConfig()], [PTuning2Config()]], ids=["layers", "feeds", "shared"]
)
def test_a_failure_at_any_exchange_leaves_the_network_as_it_was(monkeypatch, configs):
    network = small_bert(layers=2)
    before = _picture(network)
    put = Place.put
    left = -1

    def put_or_fail(place, cell):
        nonlocal left
        left -= 1
        if left == 0:
            raise MemoryError("no room for this cell")
        put(place, cell)

    monkeypatch.setattr(Place, "put", put_or_fail)
    get_peft_model(network, configs)
    exchanges = -1 - left
    detach(network)
    assert exchanges >= 2
    for number in range(1, exchanges + 1):
        left = number
        with pytest.raises(MemoryError):
            get_peft_model(network, configs)
        assert _picture(network) == before


def test_a_failure_of_the_last_step_leaves_the_network_as_it_was(monkeypatch):
    network = small_bert()
    before = _picture(network)

    def fail():
        raise RuntimeError("the graphs cannot be forgotten")

    monkeypatch.setattr("mindpet.tuning.attach.forget_compiled", fail)
    with pytest.raises(RuntimeError, match="cannot be forgotten"):
        get_peft_model(network, _COMBINED)
    assert _picture(network) == before


# Combining methods


def test_methods_combine_on_one_network(mode):
    network = small_bert(layers=2)
    before = network(*batch()).asnumpy()
    get_peft_model(network, _COMBINED)
    np.testing.assert_array_equal(network(*batch()).asnumpy(), before)
    methods = {item.path: item.method for item in require_state(network).replacements}
    attention = "bert.encoder.layer.1.attention"
    assert methods[f"{attention}.self.query"] == "lora"
    assert methods[f"{attention}.output.dense"] == "adapter"
    trained = {parameter.name for parameter in network.trainable_params()}
    assert {f"{attention}.self.key.bias", f"{attention}.self.query.bias", "classifier.weight"} <= trained
    assert f"{attention}.self.query.weight" not in trained


def test_a_prefix_and_lora_serve_one_attention(mode):
    network = get_peft_model(small_bert(), [config_of("prefixtuning"), LoraConfig(r=2)])
    fed = network(*batch()).asnumpy()
    move_adapter(network)
    assert np.abs(network(*batch()).asnumpy() - fed).max() > 1e-4


@pytest.mark.parametrize(
    ("configs", "said"),
    [
        ([LoraConfig(), IA3Config()], "self.value is wanted by lora and by ia3"),
        ([PrefixConfig(), PTuning2Config()], "is wanted by prefixtuning and by ptuning2"),
        ([LoraConfig(), LoraConfig(r=4)], "names lora twice"),
        ([LoraConfig(modules_to_save=["attention"])], "modules_to_save trains whole"),
        ([LoraConfig(), BitFitConfig(modules_to_save=["query"])], "modules_to_save trains whole"),
        ([], "empty list"),
    ],
)
def test_conflicts_are_refused(configs, said):
    network = small_bert()
    before = _picture(network)
    with pytest.raises(InputError, match=said):
        get_peft_model(network, configs)
    assert _picture(network) == before


def test_attaching_twice_is_refused():
    network = _attach(_Network())
    with pytest.raises(InputError, match="has lora attached already; give all methods as one list"):
        _attach(network)
    wrapper = nn.SequentialCell(network)
    with pytest.raises(InputError, match="has the delta parameter"):
        _attach(wrapper)


@pytest.mark.parametrize("given", [{"r": 2}, [LoraConfig(), "bitfit"]])
def test_what_is_no_configuration_is_a_type_error(given):
    with pytest.raises(TypeError, match="give configurations such as"):
        get_peft_model(_Network(), given)
    with pytest.raises(TypeError, match=r"give a mindspore\.nn\.Cell"):
        get_peft_model(LoraConfig(), LoraConfig())


# What can be adapted


def test_a_network_that_takes_no_prefix_is_refused_by_name():
    with pytest.raises(InputError, match="no attention of _Network takes a prefix, which P-Tuning v2 needs"):
        get_peft_model(_Network(), PTuning2Config())


class _Scaled(nn.Dense):
    def construct(self, x):
        return 2 * super().construct(x)


class _Listed(nn.Cell):
    def __init__(self, hold):
        super().__init__()
        self.query = nn.Dense(4, 4)
        self.held = hold(self.query)

    def construct(self, x):
        return self.query(x)


class _Tied(nn.Cell):
    """Two layers with one weight, which has the name of the first."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Dense(4, 4, has_bias=False), nn.Dense(4, 4, has_bias=False)
        self.second.weight = self.first.weight

    def construct(self, x):
        return self.second(self.first(x))


def _with_hook(dense):
    dense.register_forward_hook(lambda cell, inputs, output: 2 * output)
    return dense


def _with_construct(dense):
    dense.construct = lambda x: 2 * x
    return dense


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.SequentialCell(_Scaled(4, 4)), "0 cannot be adapted: .* is a _Scaled"),
        (nn.SequentialCell(nn.Dense(4, 4).to_float(mstype.float16)), "0 casts its inputs, by to_float"),
        (nn.SequentialCell(_with_hook(nn.Dense(4, 4))), "0 has a hook"),
        (nn.SequentialCell(_with_construct(nn.Dense(4, 4))), "0 has a construct of its own"),
        (_Listed(lambda layer: (layer,)), "query also stands in the plain tuple held of _Listed"),
        (_Listed(lambda layer: [(layer, 1)]), "query also stands in the plain list held"),
        (_Listed(lambda layer: {"a": [layer]}), "query also stands in the plain dict held"),
        (_Listed(lambda layer: layer.construct), "query also stands in the plain method held"),
        (_Listed(lambda layer: functools.partial(layer)), "query also stands in the plain partial held"),
        (_Listed(lambda layer: lambda x: layer(x)), "query also stands in the plain function held"),
        (_Listed(lambda layer: types.SimpleNamespace(layer=layer)), "query also stands in the plain SimpleNamespace"),
    ],
)
def test_a_layer_that_would_lose_something_is_refused(network, said):
    before = _picture(network)
    with pytest.raises(InputError, match=said):
        get_peft_model(network, LoraConfig(target_modules="all-linear"))
    assert _picture(network) == before


@pytest.mark.parametrize(
    "config",
    [LoraConfig(r=2, target_modules="all-linear"), AdapterConfig(bottleneck_size=2, target_modules="all-linear")],
)
def test_layers_with_one_weight_have_parameters_of_their_own_names(config):
    network = get_peft_model(_Tied(), config)
    names = [parameter.name for parameter in network.get_parameters()]
    assert len(set(names)) == len(names)
    assert {name.partition(".")[0] for name in names if DELTA_MARK in name} == {"first", "second"}


def test_parameters_that_share_a_name_are_refused():
    network = _Network()
    network.blocks[0].query = nn.Dense(4, 4)
    network.blocks[1].query = nn.Dense(4, 4)
    with pytest.raises(InputError, match=r"several parameters of the network have the name 'query\.weight'"):
        _attach(network)


def test_a_linear_of_mint_is_adapted(mode):
    network = nn.SequentialCell(mint.nn.Linear(4, 4), mint.nn.Linear(4, 2, bias=False))
    before = network(_input()).asnumpy()
    parameters = {item.name: id(item) for item in network.get_parameters()}
    get_peft_model(network, LoraConfig(r=2, target_modules="all-linear"))
    np.testing.assert_allclose(network(_input()).asnumpy(), before, rtol=1e-6, atol=1e-6)
    assert parameters.items() <= {item.name: id(item) for item in network.get_parameters()}.items()
    detach(network)
    np.testing.assert_array_equal(network(_input()).asnumpy(), before)


# LoRA's fields


def test_patterns_set_rank_and_scale_of_single_layers():
    network = _attach(
        _Network(),
        r=2,
        lora_alpha=4,
        rank_pattern={"blocks.0.query": 3, r".*\.\d\.query": 5},
        alpha_pattern={"value": 1},
    )
    ranks = {item.path: (item.cell.lora_rank, item.cell.lora_alpha) for item in require_state(network).replacements}
    assert ranks == {
        "blocks.0.query": (3, 4),
        "blocks.0.value": (2, 1),
        "blocks.1.query": (5, 4),
        "blocks.1.value": (2, 1),
    }


@pytest.mark.parametrize(
    ("bias", "trained"),
    [
        ("none", set()),
        ("lora_only", {"blocks.0.query.bias", "blocks.1.query.bias"}),
        (
            "all",
            {f"blocks.{number}.{name}.bias" for number in (0, 1) for name in ("query", "key", "value")}
            | {"again.bias", "classifier.bias"},  # a shared layer has the name of its last place,
        ),
    ],
)
def test_bias_says_which_biases_are_trained_too(bias, trained):
    network = _attach(_Network(), target_modules=["query"], bias=bias)
    assert {item.name for item in network.trainable_params() if "mindpet_" not in item.name} == trained
    assert set(require_state(network).marked) == trained


def test_what_is_marked_keeps_a_copy_of_its_value():
    network = _attach(_Network(), modules_to_save=["classifier"])
    before = network.classifier.bias.asnumpy()
    move_adapter(network)
    np.testing.assert_array_equal(require_state(network).marked["classifier.bias"], before)
    assert (network.classifier.bias.asnumpy() != before).any()


@pytest.mark.parametrize("dtype", [mstype.float16, mstype.float32])
def test_the_products_run_in_the_given_dtype(dtype, mode):
    network = get_peft_model(_Network(), LoraConfig(r=2, target_modules=["query"]), compute_dtype=dtype)
    assert network.blocks[0].query.compute_dtype == dtype
    assert network(_input()).dtype == mstype.float32


def test_the_scale_is_a_value_that_a_compiled_graph_sees(mode):
    network = _attach(_Network(), r=2, lora_alpha=4)
    plain = network(_input()).asnumpy()
    move_adapter(network)
    adapted = network(_input()).asnumpy()
    scales = [item for item in network.get_parameters() if "mindpet_state_" in item.name]
    assert [item.name for item in scales] == [f"{item.path}.mindpet_state_scale" for item in _replaced(network)]
    assert all((item.dtype, item.shape, float(item.asnumpy())) == (mstype.float32, (), 2.0) for item in scales)
    for scale in scales:
        scale.set_data(Tensor(0.0, mstype.float32))
    np.testing.assert_array_equal(network(_input()).asnumpy(), plain)
    for scale in scales:
        scale.set_data(Tensor(2.0, mstype.float32))
    np.testing.assert_array_equal(network(_input()).asnumpy(), adapted)
    assert np.abs(adapted - plain).max() > 1e-3


def _replaced(network):
    return require_state(network).replacements


def test_state_is_neither_counted_nor_matched_by_patterns(recwarn):
    network = _attach(_Network(), r=2)
    by_hand = count_parameters(_Network()).total + 4 * 2 * (4 + 4)
    assert count_parameters(network).total == by_hand
    freeze_delta(network, "lora", exclude=["*"])
    freeze_modules(network, exclude=["*scal*", "*"])
    assert not [item.name for item in network.trainable_params() if "mindpet_state_" in item.name]
    assert ["scal" in str(warning.message) for warning in recwarn] == [True]


def test_a_merged_layer_refuses_to_train(mode):
    network = _attach(_Network(), r=2, target_modules=["query"])
    network.blocks[0].query.merged = True
    network.set_train(False)
    network(_input())
    network.set_train()
    with pytest.raises(ValueError, match="is merged into the base weights"):
        network(_input())


@pytest.mark.parametrize("transposed", [True, False])
def test_merged_values_are_those_of_the_plain_layer(transposed):
    layer = nn.Dense(4, 3)
    cell = LoRADense.from_dense(layer, 2, 3, lora_b_init="normal")
    expected = layer.weight.asnumpy() + 1.5 * cell.mindpet_delta_lora_b.asnumpy() @ cell.mindpet_delta_lora_a.asnumpy()
    if not transposed:
        cell.matmul = mindspore.ops.MatMul()
        cell.weight = mindspore.Parameter(Tensor(layer.weight.asnumpy().T.copy()), name="weight")
    merged = cell.merged_values()["weight"]
    np.testing.assert_allclose(merged if transposed else merged.T, expected, rtol=1e-6)


def test_the_public_names_attach(capsys):
    network = mindpet.get_peft_model(small_bert(), mindpet.IA3Config())
    mindpet.print_trainable_parameters(network)
    assert capsys.readouterr().out == "trainable: 36 of 843 (4.2705%)\n"


class _Mixed(nn.Cell):
    """Words in rows of an image: an embedding, convolutions and a dense layer."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(6, 4)
        self.conv = nn.Conv2d(1, 2, 3, has_bias=True)
        self.grouped = nn.Conv2d(2, 2, 3, stride=2, pad_mode="pad", padding=1, dilation=2, group=2)
        self.head = nn.Dense(2, 3)

    def construct(self, ids):
        image = self.words(ids).expand_dims(1)
        return self.head(self.grouped(self.conv(image)).mean((2, 3)))


def test_lora_adapts_embeddings_and_convolutions(mode):
    network = _Mixed()
    ids = Tensor(np.arange(10).reshape(2, 5) % 6, mstype.int32)
    before = network(ids).asnumpy()
    names = {item.name for item in network.get_parameters()}
    config = LoraConfig(r=2, target_modules=["words", "conv", "grouped"], modules_to_save=["head"])
    get_peft_model(network, config)
    np.testing.assert_array_equal(network(ids).asnumpy(), before)
    added = {item.name for item in network.get_parameters()} - names
    assert added == {
        f"{layer}.{name}"
        for layer in ("words", "conv", "grouped")
        for name in ("mindpet_delta_lora_a", "mindpet_delta_lora_b", "mindpet_state_scale")
    }
    move_adapter(network)
    assert np.abs(network(ids).asnumpy() - before).max() > 1e-3


def test_all_linear_leaves_out_embeddings_convolutions_and_what_is_saved():
    network = get_peft_model(_Mixed(), LoraConfig(target_modules="all-linear"))
    assert [item.path for item in require_state(network).replacements] == ["head"]
    with pytest.raises(InputError, match="'all-linear' matches no dense layer outside modules_to_save"):
        get_peft_model(_Mixed(), LoraConfig(target_modules="all-linear", modules_to_save=["head"]))


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("lora", "graph"),
        *[pytest.param(method, "graph", marks=REPETITION) for method in ("adapter", "ia3")],
        *[(method, "pynative") for method in ("lora", "adapter", "ia3")],
    ],
    indirect=["mode"],
)
def test_the_start_is_exact_in_float16_too(method, mode):
    network = small_bert(compute_dtype=mstype.float16)
    before = network(*batch()).asnumpy()
    get_peft_model(network, config_of(method), compute_dtype=mstype.float16)
    np.testing.assert_array_equal(network(*batch()).asnumpy(), before)


@EVERY_METHOD
def test_a_method_is_a_mode_of_freezing(method):
    network = get_peft_model(small_bert(), config_of(method, modules_to_save=["classifier"]))
    head = {"classifier.weight", "classifier.bias"}
    trained = {item.name for item in network.trainable_params()} - head
    freeze_delta(network, method, exclude=["classifier.*"])
    assert {item.name for item in network.trainable_params()} == trained | head
