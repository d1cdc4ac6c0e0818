import errno
import os
from pathlib import Path

import numpy as np
import pytest

from mindpet.storage.atomic import (
    make_folder,
    place_folder,
    publish_file,
    publish_folder,
    remove_file,
    write_bytes,
    write_json,
    write_text,
)
from mindpet.storage.reader import read_json
from mindpet.utils.exceptions import InputError


def fail_with(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def test_what_is_written_is_what_is_read(tmp_path):
    write_bytes(tmp_path / "a", bytearray(b"\x00\xff"))
    write_text(tmp_path / "b", "学\n")
    write_json(tmp_path / "c", {"名": [1, 2.5, None]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "学\n".encode()
    assert read_json(tmp_path / "c") == {"名": [1, 2.5, None]}
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "atomic", "x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("value", "error"), [({"a": float("nan")}, ValueError), ({"a": np.float32(1)}, TypeError), ({1, 2}, TypeError)]
)
def test_what_json_cannot_express_leaves_the_old_file(tmp_path, value, error):
    write_json(tmp_path / "file", "old")
    with pytest.raises(error):
        write_json(tmp_path / "file", value)
    assert read_json(tmp_path / "file") == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(step, fail_with(errno.ENOSPC))
    with pytest.raises(InputError, match=r"file cannot be written \(No space left on device\); "):
        write_text(tmp_path / "file", "new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_ctrl_c_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/file", "folder", "plain/file"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "plain").write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path / name} cannot be written"):
        write_text(tmp_path / name, "new")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "plain"}


def test_every_file_and_folder_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    (staged / "inner").mkdir(parents=True)
    (staged / "inner" / "a").write_text("a")
    (staged / "b").write_text("b")
    steps = []
    monkeypatch.setattr("os.fsync", lambda descriptor: steps.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: (steps.append("rename"), rename(self, target)))
    publish_folder(staged, tmp_path / "target")
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert set(before) == {staged, staged / "inner", staged / "inner" / "a", staged / "b"}
    assert after == [tmp_path]
    assert (tmp_path / "target" / "inner" / "a").read_text() == "a"
    assert not staged.exists()


def test_a_target_that_another_process_published_stays(tmp_path):
    for name, text in (("staged", "ours"), ("target", "theirs")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    publish_folder(tmp_path / "staged", tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("target", ["plain", "missing/target"])
def test_a_folder_that_cannot_be_published_leaves_nothing(tmp_path, target):
    (tmp_path / "plain").write_text("x")
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "file").write_text("ours")
    with pytest.raises(InputError, match=f"{tmp_path / target} cannot be written"):
        publish_folder(tmp_path / "staged", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_file_is_published_over_an_old_one(tmp_path):
    (tmp_path / "staged").write_text("new")
    (tmp_path / "target").write_text("old")
    publish_file(tmp_path / "staged", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_text() == "new"


def test_a_file_that_cannot_be_published_is_removed(tmp_path):
    (tmp_path / "staged").write_text("new")
    with pytest.raises(InputError, match="cannot be written"):
        publish_file(tmp_path / "staged", tmp_path / "missing" / "target")
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_and_files_removed(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / "a" / "file")
    remove_file(tmp_path / "a" / "file")
    remove_file(tmp_path / "a" / "file")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(InputError, match="cannot be removed"):
        remove_file(tmp_path / "a" / "b")


def make_folder_with(path, text):
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_folder_is_not_replaced_unless_told(tmp_path):
    staged, target = make_folder_with(tmp_path / "staged", "new"), make_folder_with(tmp_path / "target", "old")
    with pytest.raises(InputError, match="target cannot be written"):
        place_folder(staged, target, overwrite=False)
    assert (target / "file").read_text() == "old"
    assert not staged.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_replaced_folder_leaves_nothing_of_the_old_one(tmp_path, is_there):
    if is_there:
        make_folder_with(tmp_path / "target", "old")
        (tmp_path / "target" / "more").write_text("x")
    place_folder(make_folder_with(tmp_path / "staged", "new"), tmp_path / "target", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["file"]
    assert (tmp_path / "target" / "file").read_text() == "new"


@pytest.mark.parametrize(("owner", "step", "failing"), [(Path, "rename", 1), (Path, "rename", 2), (os, "fsync", 3)])
@pytest.mark.parametrize("failure", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_folder_that_is_not_replaced_is_as_it_was(tmp_path, monkeypatch, owner, step, failing, failure):
    target = make_folder_with(tmp_path / "target", "old")
    staged = make_folder_with(tmp_path / "staged", "new")
    function, calls = getattr(owner, step), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == failing:
            raise failure
        return function(*arguments)

    monkeypatch.setattr(owner, step, fail_once)
    with pytest.raises((InputError, KeyboardInterrupt)):
        place_folder(staged, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (target / "file").read_text() == "old"


@pytest.mark.parametrize(("owner", "step", "failing"), [(Path, "rename", 1), (os, "fsync", 1), (os, "fsync", 3)])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_is_not_placed_leaves_nothing(tmp_path, monkeypatch, owner, step, failing, overwrite):
    staged = make_folder_with(tmp_path / "staged", "new")
    function, calls = getattr(owner, step), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError(errno.EIO, "broken")
        return function(*arguments)

    monkeypatch.setattr(owner, step, fail_once)
    with pytest.raises(InputError, match="target cannot be written"):
        place_folder(staged, tmp_path / "target", overwrite)
    assert list(tmp_path.iterdir()) == []
