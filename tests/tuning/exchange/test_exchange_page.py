"""What the page on exchange says is true."""

import re
from pathlib import Path

import numpy as np
import pytest

from mindpet.tuning.exchange.bottlenecks import ACTIVATIONS
from mindpet.tuning.exchange.peft.read import PEFT_TYPES
from tests.tiny import write_bert

PAGE = Path(__file__).parents[3] / "docs" / "exchange.md"
PAGES = (PAGE, PAGE.with_suffix(".zh.md"))


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bert(Path("path/to/bert"))
    return tmp_path


def run(*sources):
    names = {}
    for source in sources:
        exec(source, names)
    return names


def test_the_examples_run(reader):
    with pytest.warns(UserWarning, match="unverified"):
        names = run(*blocks("python"))
    np.testing.assert_array_equal(names["loaded"], names["exported"])
    assert {path.name for path in Path("for-peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not names["whole"].head_is_new


@pytest.mark.slow
def test_the_example_for_the_other_side_gives_the_same_logits(reader):
    with pytest.warns(UserWarning, match="unverified"):
        here = run(blocks("python")[0])
    there = run(blocks("py")[0])
    np.testing.assert_allclose(there["logits"].numpy(), here["exported"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("page", PAGES)
def test_the_page_names_what_there_is(page):
    text = page.read_text(encoding="utf-8")
    second_column = [line.split("|")[2] for line in text.splitlines() if line.startswith("|")]
    assert set(re.findall(r"`([A-Z]\w+)`", " ".join(second_column))) == set(PEFT_TYPES)
    named = re.findall(r"`(\w+)`", text[text.index("gelu_new") - 40 :])
    assert set(named) - {"gelu_new"} == set(ACTIVATIONS)
