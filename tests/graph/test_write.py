"""write_trainable: one checkpoint, whole or not at all."""

import resource

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindpet.graph import load_trainable, write_trainable
from mindpet.utils.exceptions import InputError
from tests.graph.disk import Disk, Recorder
from tests.graph.networks import LoraNetwork, set_trainable, trainable_values


@pytest.fixture
def values():
    """Values in which every number is 1."""
    return {name: Tensor(np.ones_like(value)) for name, value in trainable_values(LoraNetwork()).items()}


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_loads(tmp_path, values, recwarn):
    write_trainable(values, str(tmp_path / "adapter.ckpt"))
    net = LoraNetwork()
    set_trainable(net, 0)
    load_trainable(net, tmp_path / "adapter.ckpt")
    assert all((value == 1).all() for value in trainable_values(net).values())
    assert ms.load_checkpoint(str(tmp_path / "adapter.ckpt")).keys() == values.keys()
    assert sorted(content_of(tmp_path)) == ["adapter.ckpt", "adapter.ckpt.sha256.json"]
    assert not list(recwarn)


def test_a_path_from_the_working_folder(tmp_path, values, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_trainable(values, "adapter.ckpt")
    assert sorted(content_of(tmp_path)) == ["adapter.ckpt", "adapter.ckpt.sha256.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter.npz", r"does not end in \.ckpt"),
        ("adapter", r"does not end in \.ckpt"),
        ("taken.ckpt", r"taken\.ckpt exists already"),
        ("half.ckpt", r"half\.ckpt\.sha256\.json exists already"),
        ("folder.ckpt", r"folder\.ckpt exists already"),
        ("none/adapter.ckpt", "is not an existing folder"),
        ("taken.ckpt/adapter.ckpt", "is not an existing folder"),
        ("x" * 300 + ".ckpt", "x{300}.* cannot be written"),
        ("x" * 245 + ".ckpt", "x{245}.* cannot be written"),
    ],
)
def test_an_unusable_name(tmp_path, values, name, message):
    (tmp_path / "taken.ckpt").write_text("taken")
    (tmp_path / "half.ckpt.sha256.json").write_text("")
    (tmp_path / "folder.ckpt").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        write_trainable(values, tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "taken.ckpt").read_text() == "taken"


def test_values_that_are_no_parameters(tmp_path, values):
    for bad, error in [
        (None, TypeError),
        (list(values.values()), TypeError),
        ({"head.bias": np.ones(2)}, TypeError),
        ({}, InputError),
    ]:
        with pytest.raises(error):
            write_trainable(bad, tmp_path / "adapter.ckpt")
    assert content_of(tmp_path) == {}


@pytest.mark.parametrize("limit", [0, 40, 300])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, values, limit):
    (tmp_path / "other.ckpt").write_text("other")
    before = content_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_trainable(values, tmp_path / "adapter.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content_of(tmp_path) == before


def test_after_a_crash_the_file_is_whole_or_not_there(tmp_path, values):
    root = tmp_path.resolve() / "recorded"
    root.mkdir()
    with Recorder(root) as recorder:
        write_trainable(values, root / "adapter.ckpt")
    names = [str(root / name) for name in ("adapter.ckpt", "adapter.ckpt.sha256.json")]
    whole = [(root / name).read_bytes() for name in ("adapter.ckpt", "adapter.ckpt.sha256.json")]
    disk = Disk(root)
    for operation in recorder.operations:
        disk.apply(operation)
        for tree in disk.crash():
            found = [tree.get(name) for name in names]
            assert found[0] is None or found == whole, operation
    assert found == whole
