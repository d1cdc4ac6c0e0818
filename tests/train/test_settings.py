from pathlib import Path

import pytest

from mindpet.train.settings import FinetuneSettings, load_settings
from mindpet.utils.exceptions import InputError


def test_a_flag_beats_the_file_and_the_file_beats_the_default(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("epochs: 7\nr: 2\nout: elsewhere\n")
    settings = load_settings(config, {"r": 5})
    assert (settings.epochs, settings.r, settings.out) == (7, 5, Path("elsewhere"))
    assert settings.lora_alpha == FinetuneSettings().lora_alpha


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("learning_rat: 1", {}, r"run\.yaml: learning_rat: no such setting; did you mean learning_rate"),
        ("zzzz: 1", {}, "no such setting; see"),
        ("r: 0", {}, r"run\.yaml: r: .* greater than 0, found 0"),
        ("r: 4", {"epochs": -1}, r"^epochs: .* greater than 0, found -1"),
        ("learning_rate: .nan", {}, "learning_rate: .*finite"),
        ("method: lorax", {}, r"run\.yaml: method: no such method; did you mean lora.*found 'lorax'"),
        ("- 1", {}, r"run\.yaml: expected a mapping of settings, found list"),
        ("warmup_ratio: 1.0", {}, "warmup_ratio: .*less than 1"),
        ("seed: 1.5", {}, "seed: .*integer.*found 1.5"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(tmp_path, text, flags, said):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(InputError, match=said):
        load_settings(config, flags)


def test_an_empty_file_gives_the_defaults(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("")
    assert load_settings(config, {}) == FinetuneSettings()


def test_the_word_off_may_stand_without_quotes(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("kernels: off")
    assert load_settings(config, {}).kernels == "off"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml", {})
