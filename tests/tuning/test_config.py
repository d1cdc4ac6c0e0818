import pytest
from pydantic import ValidationError

from mindpet.tuning import config as configs
from mindpet.tuning.config import IA3Config, LoraConfig, LowRankAdapterConfig, PrefixConfig, PTuning2Config
from mindpet.tuning.registry import METHODS

KINDS = [getattr(configs, name) for name in configs.__all__ if name != "PeftConfig"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_configuration_has_its_method(kind):
    assert METHODS[kind.method].config is kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_is_frozen_and_knows_no_other_field(kind):
    with pytest.raises(ValidationError, match="frozen"):
        kind().modules_to_save = ("head",)
    with pytest.raises(ValidationError, match="has no field 'ranks'"):
        kind(ranks=8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_down_reads_back(kind):
    config = kind(modules_to_save=["head"])
    assert config.modules_to_save == ("head",)
    assert kind(**config.model_dump()) == config == kind.model_validate_json(config.model_dump_json())


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (LoraConfig(lora_rank=4), LoraConfig(r=4)),
        (PrefixConfig(prefix_token_num=4, mid_dim=5), PrefixConfig(num_virtual_tokens=4, encoder_hidden_size=5)),
        (PTuning2Config(pre_seq_len=4), PTuning2Config(num_virtual_tokens=4)),
        (PTuning2Config(prefix_token_num=4, projection_dim=5), PTuning2Config(pre_seq_len=4, encoder_hidden_size=5)),
        (LoraConfig(target_modules=["query"]), LoraConfig(target_modules=("query",))),
    ],
)
def test_names_of_the_specification_are_taken_too(given, meant):
    assert given == meant


def test_two_names_of_one_field_are_refused():
    with pytest.raises(ValidationError, match="lora_rank"):
        LoraConfig(r=8, lora_rank=4)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (LoraConfig, {"r": 0}),
        (LoraConfig, {"r": True}),
        (LoraConfig, {"r": "8"}),
        (LoraConfig, {"r": 2.0}),
        (LoraConfig, {"lora_alpha": 0}),
        (LoraConfig, {"lora_alpha": float("nan")}),
        (LoraConfig, {"lora_alpha": float("inf")}),
        (LoraConfig, {"lora_dropout": 1.0}),
        (LoraConfig, {"lora_dropout": -0.1}),
        (LoraConfig, {"bias": "some"}),
        (LoraConfig, {"target_modules": []}),
        (LoraConfig, {"target_modules": [""]}),
        (LoraConfig, {"target_modules": ""}),
        (LoraConfig, {"target_modules": 3}),
        (LoraConfig, {"rank_pattern": {"query": 0}}),
        (LoraConfig, {"alpha_pattern": {"": 1}}),
        (LoraConfig, {"modules_to_save": "classifier"}),
        (LowRankAdapterConfig, {"low_rank_size": 0}),
        (PTuning2Config, {"prefix_projection": "yes"}),
        (PTuning2Config, {"target_modules": ["attention"]}),
        (IA3Config, {"feedforward_modules": []}),
    ],
)
def test_values_out_of_range_are_refused(kind, fields):
    with pytest.raises(ValidationError):
        kind(**fields)


def test_an_unknown_field_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"LoraConfig has no field 'lora_alhpa'; did you mean lora_alpha"):
        LoraConfig(lora_alhpa=3)


def test_none_saves_no_modules_as_in_peft():
    assert LoraConfig(modules_to_save=None).modules_to_save == ()
