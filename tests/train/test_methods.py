import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from mindpet.cli import finetune as command
from mindpet.cli import main as program
from mindpet.train.methods import CONFIGS, FULL, METHOD_NAMES, OPTIONS, canonical_method, defaults_of
from mindpet.train.settings import FinetuneSettings, load_settings
from mindpet.train.task import CLASSIFICATION, LANGUAGE
from mindpet.utils.exceptions import InputError
from tests.docs.test_documents import DOCS, _table

RECIPES = Path(__file__).parents[2] / "recipes"
EVERY_METHOD = pytest.mark.parametrize("method", METHOD_NAMES)
EVERY_OPTION = pytest.mark.parametrize(
    ("method", "name"), [(method, name) for name, option in OPTIONS.items() for method in option.defaults]
)


def _value(method, name):
    """Return a value other than the default for an option of a method."""
    for value in (
        3,
        0.25,
        True,
        "all",
        (3, 4),
        {"query": 3},
        *_choices(FinetuneSettings.model_fields[name].annotation),
    ):
        try:
            taken = getattr(CONFIGS[method](**{name: value}), name)
        except ValueError:
            continue
        if taken == value != OPTIONS[name].defaults[method]:
            return value
    raise AssertionError(f"no value for {name}")


def _choices(annotation):
    """Return the words of the Literals in a type."""
    for argument in get_args(annotation):
        yield from [argument] if isinstance(argument, str) else _choices(argument)


def _of_the_command_line(monkeypatch, *arguments):
    """Return the settings that `mindpet finetune` makes of its arguments, or its exit code."""
    taken = []
    monkeypatch.setattr(command, "run", lambda settings, examples: taken.append(settings))
    monkeypatch.setattr(sys, "argv", ["mindpet", "finetune", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        program.main()
    return taken[0] if taken else end.value.code


def _as_flags(name, value):
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    return [item for one in (value if isinstance(value, tuple) else (value,)) for item in (flag, one)]


def test_the_methods_are_those_of_the_registry():
    from mindpet.tuning.registry import METHODS

    assert {method.name: method.config for method in METHODS.values()} == CONFIGS
    assert (*CONFIGS, FULL) == METHOD_NAMES


@EVERY_METHOD
def test_nothing_set_means_the_defaults_of_the_configuration(method):
    settings = FinetuneSettings(method=method)
    config = settings.peft_config()
    if method == FULL:
        assert config is None
    else:
        own = {"lora": {"lora_alpha": 16}}.get(method, {})
        assert config == CONFIGS[method](modules_to_save=["classifier"], **own)
    assert settings.learning_rate == defaults_of(method)["learning_rate"]
    assert settings.model_fields_set == {"method"}
    for name, option in OPTIONS.items():
        assert method in option.defaults or getattr(settings, name) is None


@EVERY_OPTION
def test_a_flag_sets_an_option_of_the_method(monkeypatch, method, name):
    value = _value(method, name)
    if isinstance(value, dict):
        settings = load_settings(None, {"method": method, name: value})
    else:
        settings = _of_the_command_line(monkeypatch, "--method", method, *_as_flags(name, value))
    assert settings.model_fields_set == {"method", name}
    defaults = FinetuneSettings(method=method).peft_config().model_dump()
    assert settings.peft_config().model_dump() == defaults | {name: value}


@EVERY_OPTION
def test_the_settings_of_a_run_are_read_again(tmp_path, method, name):
    settings = FinetuneSettings(method=method, **{name: _value(method, name)})
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings.of_the_run()))
    again = load_settings(file, {})
    assert again == settings
    assert again.peft_config() == settings.peft_config()


@EVERY_METHOD
def test_a_run_notes_nothing_of_other_methods(method):
    settings = FinetuneSettings(method=method)
    foreign = {name for name, option in OPTIONS.items() if method not in option.defaults}
    assert not foreign & (settings.of_the_run().keys() | settings.that_decide().keys())
    own = {name for name, option in OPTIONS.items() if method in option.defaults}
    assert own <= settings.of_the_run().keys() & settings.that_decide().keys()
    assert settings.that_decide()["learning_rate"] == settings.learning_rate


@EVERY_METHOD
def test_an_option_of_another_method_is_refused_by_the_name_of_its_own(monkeypatch, capsys, method):
    foreign = [(name, option) for name, option in OPTIONS.items() if method not in option.defaults]
    for name, option in foreign:
        owner = next(iter(option.defaults))
        value = _value(owner, name)
        with pytest.raises(InputError, match=rf"^{name}: an option of {owner}.* but the method is {method}; leave it"):
            load_settings(None, {"method": method, name: value})
    assert _of_the_command_line(monkeypatch, "--method", method, *_as_flags(name, value)) == 2
    assert f"mindpet: {name}: an option of" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "name"), [("prefix", "prefixtuning"), ("LoRA", "lora"), ("PTuning2", "ptuning2")])
def test_a_method_has_synonyms_and_no_case(given, name):
    assert FinetuneSettings(method=given).method == canonical_method(given) == name


def test_a_target_given_once_is_a_name_or_pattern_and_several_are_a_list(monkeypatch):
    once = _of_the_command_line(monkeypatch, "--target-modules", "all-linear")
    assert once.target_modules == "all-linear"
    twice = _of_the_command_line(monkeypatch, "--target-modules", "query", "--target-modules", "key")
    assert twice.target_modules == ("query", "key")


def test_the_help_says_what_each_option_is_for_and_its_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    assert _of_the_command_line(monkeypatch, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "adapter: The size between the two projections. (default: 64)" in shown
    assert "prefixtuning, ptuning2: The number of tokens before each layer's keys. (default: 16)" in shown
    for name, option in OPTIONS.items():
        assert all(option.meanings.values()), name
        assert (f"--{name.replace('_', '-')} " in shown) == ("pattern" not in name)


# A method from MindFormers' YAML


BLOCKS = {
    "lora": {"lora_rank": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ".*query|.*value"},
    "ptuning2": {"pre_seq_len": 8, "projection_dim": 5, "dropout_prob": 0.0},
    "prefixtuning": {"prefix_token_num": 4, "mid_dim": 6, "dropout_rate": 0.2},
}
READ = {
    "lora": {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1},
    "ptuning2": {"num_virtual_tokens": 8, "encoder_hidden_size": 5, "prefix_projection": False},
    "prefixtuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 6, "dropout_rate": 0.2},
}


@pytest.fixture
def mindformers_file(tmp_path):
    def write(pet_type):
        file = tmp_path / f"{pet_type}.yaml"
        block = {"pet_type": pet_type, **BLOCKS[pet_type]}
        file.write_text(yaml.safe_dump({"model": {"model_config": {"pet_config": block}}}))
        return file

    return write


@pytest.mark.parametrize("pet_type", BLOCKS)
def test_a_pet_config_gives_method_and_options(monkeypatch, mindformers_file, pet_type):
    file = mindformers_file(pet_type)
    settings = _of_the_command_line(monkeypatch, "--mindformers-yaml", file, "--epochs", 2)
    assert (settings.method, settings.epochs) == (pet_type, 2)
    assert {name: getattr(settings, name) for name in READ[pet_type]} == READ[pet_type]
    assert settings.learning_rate == defaults_of(pet_type)["learning_rate"]


def test_flags_and_config_override_a_pet_config(monkeypatch, mindformers_file, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("r: 3\nlora_alpha: 5\n")
    flags = ["--mindformers-yaml", mindformers_file("lora"), "--config", config, "--lora-alpha", 7]
    settings = _of_the_command_line(monkeypatch, *flags, "--method", "LORA")
    assert (settings.r, settings.lora_alpha, settings.lora_dropout) == (3, 7, 0.1)


def test_two_methods_are_refused(monkeypatch, mindformers_file, tmp_path, capsys):
    file = mindformers_file("ptuning2")
    assert _of_the_command_line(monkeypatch, "--mindformers-yaml", file, "--method", "lora") == 2
    said = capsys.readouterr().err
    assert f"method: lora was given, but {file} has a pet_config for ptuning2; leave one of them out" in said
    assert _of_the_command_line(monkeypatch, "--mindformers-yaml", file, "--lora-alpha", 2) == 2
    assert "lora_alpha: an option of lora, but the method is ptuning2" in capsys.readouterr().err


def test_options_that_contradict_each_other_are_refused(monkeypatch, capsys):
    flags = ["--init-lora-weights", "pissa", "--use-dora"]
    assert _of_the_command_line(monkeypatch, *flags) == 2
    assert "init_lora_weights is 'pissa' and use_dora is set too" in capsys.readouterr().err


def test_a_file_without_a_pet_config_is_refused(monkeypatch, tmp_path, capsys):
    file = tmp_path / "other.yaml"
    file.write_text("model: {}\n")
    assert _of_the_command_line(monkeypatch, "--mindformers-yaml", file) == 2
    assert "holds no blocks pet_config" in capsys.readouterr().err


# The recipes


@pytest.mark.parametrize("method", [file.stem for file in RECIPES.glob("*") if file.stem in METHOD_NAMES])
def test_a_methods_recipe_is_its_own_run(method):
    settings = load_settings(RECIPES / f"{method}.yaml", {})
    assert settings.method == method
    assert settings.out == Path("runs") / settings.method
    places = {"target_modules": settings.target_modules} if settings.target_modules else {}
    assert settings == FinetuneSettings(method=settings.method, out=settings.out, **places)


def test_the_methods_of_the_specification_have_recipes():
    names = {file.stem for file in RECIPES.glob("*.yaml")}
    assert names >= {"lora", "adapter", "low_rank_adapter", "prefixtuning", "ptuning2", "bitfit"}


@pytest.mark.parametrize(("page", "heading"), [("language-tuning.md", "Method"), ("language-tuning.zh.md", "方法")])
def test_the_page_on_language_models_has_their_learning_rates(page, heading):
    documented = {row[0].strip("`"): float(row[1].strip("`")) for row in _table(DOCS / page, heading)}
    assert documented == {method: defaults_of(method, LANGUAGE)["learning_rate"] for method in METHOD_NAMES}


def test_prefix_tuning_of_a_language_model_has_narrower_layers():
    sizes = [
        FinetuneSettings(task=task, method="prefixtuning").encoder_hidden_size for task in (LANGUAGE, CLASSIFICATION)
    ]
    assert sizes == [128, 512]
