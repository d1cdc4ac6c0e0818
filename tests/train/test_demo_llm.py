"""The demonstration on a language model, with one that is very small."""

import json
import sys

import pytest

from mindpet.cli import main as program
from mindpet.data.language_data import LanguageData, Passage
from mindpet.train import demo_llm, language
from tests.train.tiny_language import write_language_model

SPLITS = {"train": 40, "valid": 4, "test": 6}


def _passages(split, count):
    return tuple(Passage(f"{'abc'[number % 3]} ab ab ab {split} ab", f"{split}:{number}") for number in range(count))


def test_a_prompt_starts_from_a_text_unless_it_comes_out_of_a_projection():
    prompt, lora = demo_llm.settings_of_the_demo({})
    assert "BBC News" in prompt.prompt_text and lora.prompt_text is None
    for given, expected in (({"prefix_projection": True}, None), ({"prompt_text": "Here:"}, "Here:")):
        (prompt,) = demo_llm.settings_of_the_demo({"method": "ptuning2"} | given)
        assert prompt.prompt_text == expected


@pytest.mark.slow
def test_the_demo_shows_both_methods_before_and_after(monkeypatch, tmp_path, capsys):
    model = write_language_model(tmp_path / "model", "llama")
    data = LanguageData("articles", *(_passages(split, 3 * count) for split, count in SPLITS.items()))
    for module in (demo_llm, language):
        monkeypatch.setattr(module, "smollm2_folder", lambda notify: model)
    monkeypatch.setattr(demo_llm, "bbc_folder", lambda notify: None)
    monkeypatch.setattr(demo_llm, "load_bbc_articles", lambda folder, seed: data)
    monkeypatch.setattr(demo_llm, "_ARTICLES", SPLITS)
    monkeypatch.setattr(demo_llm, "_NEW_TOKENS", 4)
    out = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["mindpet", "demo", "llm", "--out", str(out), "--learning-rate", "0.03"])
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "a ab ab ab test ab ..." in shown
    metrics = {method: json.loads((out / method / "metrics.json").read_text()) for method in demo_llm.METHODS}
    assert metrics["lora"]["base_perplexity"] == metrics["ptuning2"]["base_perplexity"]
    for one in metrics.values():
        assert one["perplexity"] < 0.8 * one["base_perplexity"]
        assert f"{one['base_perplexity']:.2f}" in shown and f"{one['perplexity']:.2f}" in shown
    lines = (out / "articles" / "test.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"][0] for line in lines] == ["a"] * 6, "every third one"
