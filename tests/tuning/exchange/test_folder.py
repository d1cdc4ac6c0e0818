import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from mindspore import Tensor

import mindpet
from mindpet.utils.exceptions import InputError
from tests.tuning.exchange.networks import Stack, adapter_values, lora, trained


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_adapter_is_kept_unless_told(tmp_path):
    mindpet.save_adapter(trained(Stack(), lora()), tmp_path / "adapter")
    before = content(tmp_path / "adapter")
    other = trained(Stack(), lora(), seed=2)
    with pytest.raises(InputError, match="holds an adapter already; pass overwrite=True to replace it"):
        mindpet.save_adapter(other, tmp_path / "adapter")
    assert content(tmp_path / "adapter") == before
    mindpet.save_adapter(other, tmp_path / "adapter", overwrite=True)
    network = Stack()
    mindpet.load_adapter(network, tmp_path / "adapter")
    assert adapter_values(network) == adapter_values(other)
    assert entries(tmp_path) == ["adapter"]


def make_foreign(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


PLACES = {
    "a folder of another kind": (make_foreign, "holds 'notes.txt', which no adapter's folder has"),
    "a file": (lambda path: path.write_text("mine"), "is a file; name another folder"),
    "a link": (lambda path: path.symlink_to(path.parent), "is a symbolic link"),
    "a folder below a file": (lambda path: path.parent.joinpath("x").write_text("mine"), "cannot be written"),
}


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_adapter_is_never_replaced(tmp_path, place, overwrite):
    make, message = PLACES[place]
    make(tmp_path / "adapter")
    before = entries(tmp_path)
    target = tmp_path / "x" / "adapter" if place == "a folder below a file" else tmp_path / "adapter"
    with pytest.raises(InputError, match=message):
        mindpet.save_adapter(trained(Stack(), lora()), target, overwrite=overwrite)
    assert entries(tmp_path) == before
    if place == "a folder of another kind":
        assert entries(tmp_path / "adapter") == ["notes.txt"]


def test_an_empty_folder_is_taken_and_missing_ones_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    network = trained(Stack(), lora())
    for folder in (tmp_path / "empty", tmp_path / "some" / "where" / "else"):
        mindpet.save_adapter(network, folder)
        assert len(entries(folder)) == 3


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [0, 1, 4, 7, 10, 11])
def test_a_write_that_fails_leaves_the_old_adapter_whole(tmp_path, monkeypatch, saved_by, call, failure, overwrite):
    old, new = saved_by
    if overwrite:
        mindpet.save_adapter(old, tmp_path / "adapter")
    before = content(tmp_path / "adapter") if overwrite else None
    sync, calls = os.fsync, []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == call + 1:
            raise failure
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        mindpet.save_adapter(new, tmp_path / "adapter", overwrite=overwrite)
    monkeypatch.undo()
    assert len(calls) > call
    assert entries(tmp_path) == (["adapter"] if overwrite else [])
    if overwrite:
        assert content(tmp_path / "adapter") == before


@pytest.fixture(scope="module")
def saved_by():
    return trained(Stack(), lora()), trained(Stack(), lora(), seed=2)


def test_a_folder_that_appears_meanwhile_is_an_error(tmp_path, monkeypatch):
    from mindpet.tuning.exchange import folder as module

    network = trained(Stack(), lora())

    def appear(path, overwrite):
        make_foreign(Path(path))

    monkeypatch.setattr(module, "check_target", appear)
    with pytest.raises(InputError, match="adapter cannot be written"):
        mindpet.save_adapter(network, tmp_path / "adapter")
    assert entries(tmp_path / "adapter") == ["notes.txt"]
    assert entries(tmp_path) == ["adapter"]


def test_a_name_that_no_file_system_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        mindpet.save_adapter(trained(Stack(), lora()), tmp_path / ("a" * 300))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_that_has_diverged_is_not_saved(tmp_path, value):
    network = trained(Stack(), lora())
    network.head.bias.set_data(Tensor(np.array([0, value, 0], np.float32)))
    with pytest.raises(InputError, match=r"head.bias holds NaN or infinite numbers; train again"):
        mindpet.save_adapter(network, tmp_path / "adapter")
    assert entries(tmp_path) == []


def test_a_plain_network_has_nothing_to_save(tmp_path):
    with pytest.raises(InputError, match="nothing is attached"):
        mindpet.save_adapter(Stack(), tmp_path / "adapter")


def test_the_card_says_what_the_adapter_is(tmp_path):
    mindpet.save_adapter(
        trained(Stack(), [lora(target_modules=["first"]), mindpet.BitFitConfig()]),
        tmp_path / "adapter",
        base="someone/base: with\nodd | text",
        data={"name": "新闻", "rows": 12, "kind|of": "a\nb"},
        metrics={"accuracy": 0.5, "seeds": [1, 2]},
    )
    text = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "library_name": "mindpet",
        "tags": ["mindspore", "peft", "lora", "bitfit"],
        "base_model": "someone/base: with\nodd | text",
    }
    total = 6 * 8 + 8 + 2 * 8 + 8 * 5 + 5 + 5 * 3 + 3
    trained_count = (2 * 6 + 8 * 2) + (5 * 3 + 3) + 8 + 5 + 0
    for line in (
        "# Adapter: lora, bitfit",
        f"{trained_count} of {total + 28} ({trained_count / (total + 28):.3%})",
        "## Method: lora",
        "| r | 2 |",
        "| lora_alpha | 6.0 |",
        "## Method: bitfit",
        "| name | 新闻 |",
        r"| kind\|of | a b |",
        "| accuracy | 0.5 |",
        "| seeds | [1, 2] |",
    ):
        assert line in body.splitlines()


def test_a_card_without_particulars_says_so(tmp_path):
    mindpet.save_adapter(trained(Stack(), lora()), tmp_path / "adapter", data="some lines", metrics={})
    text = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "## Base\n\nNot given.\n" in text
    assert "## Data\n\nsome lines\n" in text
    assert "## Metrics\n\nNot given.\n" in text
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
