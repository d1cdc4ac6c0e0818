import pytest
from mindspore import nn

from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.config import AdapterConfig, BitFitConfig, IA3Config, LoraConfig
from mindpet.tuning.state import require_state
from mindpet.utils.exceptions import InputError
from tests.methods import small_bert


class _Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query = nn.Dense(2, 2)
        self.my_query = nn.Dense(2, 2, has_bias=False)
        self.norm = nn.LayerNorm((2,))
        self.drop = nn.Dropout(p=0.1)


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.blocks = nn.CellList([_Block() for _ in range(12)])
        self.head = nn.Dense(2, 2)


def _replaced(config, network=None):
    network = get_peft_model(_Network() if network is None else network, config)
    return [item.path for item in require_state(network).replacements]


def _all(name):
    return [f"blocks.{number}.{name}" for number in range(12)]


@pytest.mark.parametrize(
    ("targets", "replaced"),
    [
        (["query"], _all("query")),
        ("query", _all("query")),
        (["1.query"], ["blocks.1.query"]),
        ("blocks.11.my_query", ["blocks.11.my_query"]),
        (["head", "blocks.0.query"], ["blocks.0.query", "head"]),
        (
            ["*query"],
            [path for number in range(12) for path in (f"blocks.{number}.query", f"blocks.{number}.my_query")],
        ),
        (["blocks.[01].query"], ["blocks.0.query", "blocks.1.query"]),
        (["1?.my_query"], ["blocks.10.my_query", "blocks.11.my_query"]),
        (r"blocks\.[2-3]\.query", ["blocks.2.query", "blocks.3.query"]),
        (r".*\.query|head", [*_all("query"), "head"]),
    ],
)
def test_targets_are_names_path_ends_globs_or_a_regular_expression(targets, replaced):
    assert _replaced(LoraConfig(target_modules=targets)) == replaced


def test_all_linear_is_every_dense_layer_but_those_that_are_saved():
    every = [path for number in range(12) for path in (f"blocks.{number}.query", f"blocks.{number}.my_query")]
    assert _replaced(LoraConfig(target_modules="all-linear")) == [*every, "head"]
    assert _replaced(LoraConfig(target_modules="all-linear", modules_to_save=["head"])) == every


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            LoraConfig(target_modules=["querry"]),
            "target_modules: 'querry' matches no dense layer.*nearest names are query",
        ),
        (LoraConfig(target_modules=["query", "uery"]), "target_modules: 'uery' matches no"),
        (LoraConfig(target_modules=["blocks.12.query"]), "'blocks.12.query'.*nearest names are blocks.2.query"),
        (LoraConfig(target_modules=["blocks.0"]), "'blocks.0' matches no dense layer"),
        (LoraConfig(target_modules=["norm"]), "'norm' matches no dense layer, embedding or convolution"),
        (LoraConfig(target_modules=["*.keys"]), r"'\*.keys' matches no"),
        (LoraConfig(target_modules=r"blocks\.query"), "matches no dense layer"),
        (LoraConfig(target_modules="blocks.(query"), r"'blocks.\(query' is no regular expression"),
        (
            LoraConfig(target_modules="query", modules_to_save=["haed"]),
            "modules_to_save: 'haed'.*nearest names are head",
        ),
        (LoraConfig(target_modules="query", modules_to_save=["drop"]), "'drop' matches no cell with weights"),
        (LoraConfig(target_modules="query", rank_pattern={"querys": 2}), "rank_pattern: 'querys' matches no adapted"),
        (LoraConfig(target_modules="query", alpha_pattern={"head": 2}), "alpha_pattern: 'head' matches no adapted"),
        (LoraConfig(target_modules="query", rank_pattern={"(": 2}), "is no regular expression"),
        (
            LoraConfig(),
            "default placement .bert, gpt2, glm, llama, qwen2.; give 'all-linear' or some names .*my_query",
        ),
        (AdapterConfig(target_modules=["norm"]), "'norm' matches no dense layer of the network"),
        (IA3Config(target_modules=["query"], feedforward_modules=["head"]), "feedforward_modules: 'head' matches no"),
        (BitFitConfig(target_modules=["my_query"]), "target_modules: 'my_query' matches no cell with a bias"),
    ],
)
def test_an_entry_that_matches_nothing_is_an_error_with_the_nearest_names(config, said):
    network = _Network()
    with pytest.raises(InputError, match=said):
        get_peft_model(network, config)
    assert all(parameter.requires_grad for parameter in network.get_parameters())


def test_bitfit_may_be_kept_to_some_cells():
    network = get_peft_model(_Network(), BitFitConfig(target_modules=["blocks.1", "head"]))
    assert {item.name for item in network.trainable_params()} == {"blocks.1.query.bias", "head.bias"}


def test_bitfit_needs_a_bias():
    with pytest.raises(InputError, match="no parameter whose name ends in bias"):
        get_peft_model(nn.SequentialCell(nn.Dense(2, 2, has_bias=False)), BitFitConfig())


def _in_layer(*names):
    return [f"bert.encoder.layer.{number}.{name}" for number in (0, 1) for name in names]


@pytest.mark.parametrize(
    ("config", "replaced"),
    [
        (LoraConfig(), _in_layer("attention.self.query", "attention.self.value")),
        (AdapterConfig(bottleneck_size=2), _in_layer("attention.output.dense", "output.dense")),
        (
            IA3Config(),
            _in_layer("attention.self.key", "attention.self.value", "attention.output.dense", "output.dense"),
        ),
    ],
)
def test_bert_has_the_placement_of_the_specification(config, replaced):
    assert _replaced(config, small_bert(layers=2)) == replaced
    wrapped = nn.SequentialCell(small_bert(layers=2))
    assert _replaced(config, wrapped) == [f"0.{path}" for path in replaced]


def test_ia3_scales_the_inputs_of_feed_forward_layers():
    network = get_peft_model(small_bert(), IA3Config())
    layers = {
        item.path.removeprefix("bert.encoder.layer.0."): item.cell for item in require_state(network).replacements
    }
    assert {path: cell.feedforward for path, cell in layers.items()} == {
        "attention.self.key": False,
        "attention.self.value": False,
        "attention.output.dense": True,
        "output.dense": True,
    }
    assert layers["output.dense"].mindpet_delta_ia3_scale.shape == (12,)


def test_ia3_with_own_targets_has_no_feed_forward_layer_unless_told():
    network = get_peft_model(small_bert(), IA3Config(target_modules=["key", "intermediate.dense"]))
    assert not any(item.cell.feedforward for item in require_state(network).replacements)
    network = get_peft_model(
        small_bert(), IA3Config(target_modules="all-linear", feedforward_modules=["*.output.dense"])
    )
    inside = {item.path for item in require_state(network).replacements if item.cell.feedforward}
    assert inside == {"bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"}
