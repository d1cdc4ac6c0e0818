"""LoRA's variants, VeRA and trainable tokens on a whole network: attached, trained, merged, saved and loaded."""

import copy
import math

import numpy as np
import pytest
from mindspore import Tensor, nn

import mindpet
from mindpet import LoraConfig, TrainableTokensConfig, VeraConfig
from mindpet.delta import DoRADense, LoRADense, PiSSADense, VeRADense, make_projection
from mindpet.tuning.state import adapter_parameters
from mindpet.utils.exceptions import InputError
from tests.methods import move_adapter, small_bert
from tests.scale import REPETITION

IDS = np.array([[1, 7, 4], [2, 0, 7]], np.int32)
ON_TINY = {"target_modules": ["query", "value"]}
SMALL = {"r": 2, "lora_alpha": 4, **ON_TINY}
VARIANTS = {
    "rslora": LoraConfig(**SMALL, use_rslora=True),
    "dora": LoraConfig(**SMALL, use_dora=True),
    "dora_rslora": LoraConfig(**SMALL, use_dora=True, use_rslora=True),
    "pissa": LoraConfig(**SMALL, init_lora_weights="pissa"),
    "vera": VeraConfig(r=3, **ON_TINY),
    "tokens": TrainableTokensConfig(token_indices=[7, 2], target_modules=["words"]),
}
CELLS = {"dora": DoRADense, "dora_rslora": DoRADense, "pissa": PiSSADense, "vera": VeRADense, "rslora": LoRADense}
EACH = pytest.mark.parametrize("name", VARIANTS)
# rsLoRA has but another scale, which is a value for the graph: that of LoRA or DoRA stands for it.
EACH_IN_BOTH_MODES = pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(mode, name, marks=REPETITION if mode == "graph" and "rslora" in name else [])
        for mode in ("graph", "pynative")
        for name in VARIANTS
    ],
    indirect=["mode"],
)


class Tiny(nn.Cell):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 6)
        self.query = nn.Dense(6, 8, activation="tanh")
        self.value = nn.Dense(8, 5)
        generator = np.random.default_rng(0)
        for parameter in self.get_parameters():
            parameter.set_data(Tensor(generator.normal(0, 0.5, parameter.shape).astype(np.float32)))

    def construct(self, ids):
        return self.value(self.query(self.words(ids)))


def _attached(name):
    return mindpet.get_peft_model(Tiny(), VARIANTS[name])


def _outputs(network):
    return network(Tensor(IDS)).asnumpy()


@EACH_IN_BOTH_MODES
def test_each_starts_as_the_network_exactly_and_moves_what_it_trains(mode, name):
    plain = _outputs(Tiny())
    network = _attached(name)
    assert np.array_equal(_outputs(network), plain)
    trained = {parameter.name for parameter in network.trainable_params()}
    assert all("mindpet_delta_" in one for one in trained)
    move_adapter(network)
    assert not np.allclose(_outputs(network), plain, atol=1e-3)


@EACH_IN_BOTH_MODES
def test_merging_gives_the_same_outputs_and_unmerging_the_same_bits(mode, name):
    network = _attached(name)
    base = {p.name: p.asnumpy().copy() for p in network.get_parameters() if "mindpet_" not in p.name}
    move_adapter(network)
    moved = _outputs(network)
    mindpet.merge(network)
    np.testing.assert_allclose(_outputs(network), moved, rtol=1e-5, atol=1e-5)
    mindpet.unmerge(network)
    assert np.array_equal(_outputs(network), moved)
    assert all(np.array_equal(p.asnumpy(), base[p.name]) for p in network.get_parameters() if p.name in base)


@EACH
def test_each_comes_back_from_a_folder_bit_for_bit(tmp_path, name):
    before = _attached(name)
    move_adapter(before)
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = Tiny()
    report = mindpet.load_adapter(after, tmp_path / "adapter")
    assert report.is_verified and report.has_effect
    assert report.outcome.difference == 0
    assert np.array_equal(_outputs(after), _outputs(before))
    assert list(adapter_parameters(after)) == list(adapter_parameters(before))
    assert [p.name for p in after.trainable_params()] == [p.name for p in before.trainable_params()]


@EACH
def test_unloading_gives_the_plain_network_back(name):
    plain = _outputs(Tiny())
    network = _attached(name)
    move_adapter(network)
    assert np.array_equal(_outputs(mindpet.unload(network)), plain)
    assert not any("mindpet_" in parameter.name for parameter in network.get_parameters())


@EACH
def test_a_copy_is_a_network_of_its_own(name):
    network = _attached(name)
    twin = copy.deepcopy(network)
    move_adapter(network)
    assert np.array_equal(_outputs(twin), _outputs(Tiny()))
    assert len(list(twin.get_parameters())) == len(list(network.get_parameters()))


@pytest.mark.parametrize("name", CELLS)
def test_each_dense_layer_becomes_the_cell_of_its_variant(name):
    fields = VARIANTS[name].model_dump(exclude={"target_modules"})
    attention = (
        mindpet.get_peft_model(small_bert(), type(VARIANTS[name])(**fields)).bert.encoder.layer[0].attention.self
    )
    assert type(attention.query) is type(attention.value) is CELLS[name]
    assert type(attention.key) is not CELLS[name]


def test_rslora_scales_by_the_root_of_each_rank_and_kind_of_layer():
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(5, 6)
            self.conv = nn.Conv2d(2, 3, 1)
            self.wide, self.thin = nn.Dense(6, 6), nn.Dense(6, 6)

    config = LoraConfig(
        target_modules=["words", "conv", "wide", "thin"],
        r=2,
        lora_alpha=4,
        use_rslora=True,
        rank_pattern={"wide": 5},
        alpha_pattern={"thin": 7},
    )
    network = mindpet.get_peft_model(Network(), config)
    scales = {name: float(getattr(network, name).scaling.asnumpy()) for name in ("words", "conv", "wide", "thin")}
    expected = {"words": 4 / math.sqrt(2), "conv": 4 / math.sqrt(2), "wide": 4 / math.sqrt(5), "thin": 7 / math.sqrt(2)}
    assert scales == pytest.approx(expected, rel=1e-7)


def test_pissa_keeps_the_base_and_is_a_change_of_twice_the_rank():
    network = _attached("pissa")
    base = {p.name: p.asnumpy() for p in Tiny().get_parameters()}
    assert all(np.array_equal(p.asnumpy(), base[p.name]) for p in network.get_parameters() if p.name in base)
    assert {p.name.rpartition(".")[2] for p in network.trainable_params()} == {
        "mindpet_delta_lora_a",
        "mindpet_delta_lora_b",
    }
    move_adapter(network)
    plain = mindpet.get_peft_model(Tiny(), LoraConfig(r=4, lora_alpha=8, **ON_TINY))
    for own, other in ((network.query, plain.query), (network.value, plain.value)):
        lora_a, lora_b = own.factors()
        other.mindpet_delta_lora_a.set_data(Tensor(lora_a))
        other.mindpet_delta_lora_b.set_data(Tensor(lora_b))
    np.testing.assert_allclose(_outputs(plain), _outputs(network), rtol=1e-5, atol=1e-5)


def test_all_vera_layers_share_the_projection_of_the_largest():
    config = VeraConfig(r=3, projection_prng_key=5, target_modules=["query", "intermediate.dense", "output.dense"])
    network = mindpet.get_peft_model(small_bert(layers=2), config)
    state = [p for p in network.get_parameters() if "vera_a" in p.name or "vera_b" in p.name]
    assert [p.name for p in state] == ["mindpet_state_vera_a", "mindpet_state_vera_b"]
    for parameter, expected in zip(state, make_projection(12, 12, 3, 5), strict=True):
        assert np.array_equal(parameter.asnumpy(), expected.asnumpy())
    count = mindpet.count_parameters(network)
    assert count.trainable == 2 * (4 * 3 + 8 + 8 + 12 + 8)
    assert count.frozen == mindpet.count_parameters(small_bert(layers=2)).total
    assert not any("state" in name for name in adapter_parameters(network))


def test_only_the_named_tokens_change():
    network = _attached("tokens")
    words = network.words
    before = words(Tensor(np.arange(10, dtype=np.int32))).asnumpy()
    move_adapter(network)
    after = words(Tensor(np.arange(10, dtype=np.int32))).asnumpy()
    assert [i for i in range(10) if not np.array_equal(before[i], after[i])] == [2, 7]
    assert mindpet.count_parameters(network).trainable == 2 * 6


def test_a_target_may_be_any_embedding_and_no_other_layer():
    fields = {"token_indices": [1]}
    for targets, found in ((None, "word_embeddings"), (["position_embeddings"], "position_embeddings")):
        network = mindpet.get_peft_model(small_bert(), TrainableTokensConfig(target_modules=targets, **fields))
        names = [parameter.name for parameter in network.trainable_params()]
        assert names == [f"bert.embeddings.{found}.mindpet_delta_tokens_rows"]
    with pytest.raises(InputError, match="matches no embedding"):
        mindpet.get_peft_model(small_bert(), TrainableTokensConfig(target_modules=["query"], **fields))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TrainableTokensConfig(), "token_indices` is empty"),
        (TrainableTokensConfig(token_indices=[3, 99]), "with 99"),
        (TrainableTokensConfig(token_indices=[3, 3]), "with 3 twice"),
        (LoraConfig(use_dora=True, target_modules=["word_embeddings"]), "matches no dense layer"),
        (LoraConfig(init_lora_weights="pissa", target_modules=["word_embeddings"]), "matches no dense layer"),
        (LoraConfig(init_lora_weights="pissa", r=9), "lora_rank"),
        (VeraConfig(target_modules=["nothing"]), "matches no dense layer"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_and_nothing_changes(config, said):
    network = small_bert()
    before = [parameter.name for parameter in network.get_parameters()]
    with pytest.raises(InputError, match=said):
        mindpet.get_peft_model(network, config)
    assert [parameter.name for parameter in network.get_parameters()] == before


@pytest.mark.parametrize(
    ("make", "fields", "said"),
    [
        (LoraConfig, {"init_lora_weights": "pissa", "use_dora": True}, "'pissa' and use_dora"),
        (LoraConfig, {"init_lora_weights": "pissa", "lora_a_init": "normal"}, "'pissa' and lora_a_init"),
        (LoraConfig, {"init_lora_weights": "olora"}, "'default' or 'pissa'"),
        (LoraConfig, {"init_lora_weights": False}, "'default' or 'pissa'"),
        (LoraConfig, {"use_dora": 1}, "bool"),
        (LoraConfig, {"use_rslora": "yes"}, "bool"),
        (VeraConfig, {"r": 0}, "greater than 0"),
        (VeraConfig, {"d_initial": math.inf}, "finite"),
        (VeraConfig, {"projection_prng_key": -1}, "greater than or equal to 0"),
        (TrainableTokensConfig, {"token_indices": [-1]}, "greater than or equal to 0"),
        (TrainableTokensConfig, {"token_indices": [1.0]}, "integer"),
    ],
)
def test_a_configuration_with_a_wrong_value_is_refused(make, fields, said):
    with pytest.raises(ValueError, match=said):
        make(**fields)


def test_pefts_true_is_the_default_start():
    assert LoraConfig(init_lora_weights=True) == LoraConfig()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "alpha"), [(3, 5), (8, 16), (64, 1)])
def test_rslora_and_dora_scale_as_peft_does(rank, alpha):
    import torch
    from peft import LoraConfig as Theirs

    from tests.delta.peers import adapt

    for fields in ({"use_rslora": True}, {"use_rslora": True, "use_dora": True}, {}):
        settings = {"r": rank, "lora_alpha": alpha, **fields}
        theirs = adapt(torch.nn.Linear(6, 4), Theirs(**settings, target_modules=["layer"]))
        network = mindpet.get_peft_model(Tiny(), LoraConfig(**settings, target_modules=["query"]))
        assert float(network.query.scaling.asnumpy()) == pytest.approx(theirs.scaling["default"], rel=1e-7)
