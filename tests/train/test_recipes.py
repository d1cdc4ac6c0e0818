"""Each recipe of a system or a form of data runs, on models and data that are very small."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mindpet.train.finetune import finetune
from mindpet.train.methods import METHOD_NAMES
from mindpet.train.settings import load_settings
from tests.tiny import write_bert, write_task
from tests.train.tiny_language import write_answers, write_language_model

RECIPES = sorted(
    file for file in (Path(__file__).parents[2] / "recipes").glob("*.yaml") if file.stem not in METHOD_NAMES
)
MODELS = {"gpt2": "gpt2", "glm2": "glm", "smollm2": "llama"}
FORMS = {"texts": "text", "completions": "completion", "instructions": "instruction", "chats": "messages"}


def test_there_is_a_recipe_for_each_system_and_form_of_data():
    recipes = [load_settings(file, {}) for file in RECIPES]
    assert {settings.data.stem for settings in recipes if settings.data} == set(FORMS)
    assert {file.stem.split("_")[0] for file in RECIPES} == {*MODELS, "r"}
    assert any(settings.r_drop for settings in recipes)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_names_itself(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ") and f"mindpet finetune --config recipes/{file.name}" in first
    assert load_settings(file, {}).out == Path("runs") / file.stem


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_runs(file, tmp_path):
    recipe = load_settings(file, {})
    less = {"epochs": 1, "batch_size": 8, "out": tmp_path / "run", "max_length": 48}
    if recipe.task == "classification":
        less |= {"model": write_bert(tmp_path / "model"), "data": write_task(tmp_path / "task.jsonl")}
    else:
        less["model"] = write_language_model(tmp_path / "model", MODELS[file.stem.split("_")[0]])
        less["data"] = write_answers(tmp_path / "data.jsonl", FORMS[recipe.data.stem])
        less |= {"num_virtual_tokens": 4} if recipe.num_virtual_tokens else {}
    outcome = finetune(load_settings(file, less), Console(quiet=True))
    assert outcome.finished and outcome.adapter.is_dir()
    metric = "accuracy" if recipe.task == "classification" else "perplexity"
    assert np.isfinite(outcome.metrics[metric])
    assert outcome.metrics["method"] == recipe.method
