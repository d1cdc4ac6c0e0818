import os

import pytest

from mindpet.storage.reader import read_bytes, read_json, read_json_lines, read_text, read_yaml, require_folder
from mindpet.utils.exceptions import InputError


def file_of(folder, content):
    path = folder / "file"
    path.write_bytes(content)
    return path


def test_text_loses_its_byte_order_mark_and_its_kind_of_line_end(tmp_path):
    path = file_of(tmp_path, b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"
    assert read_bytes(path) == b"\xef\xbb\xbfa\r\nb\rc\n"


def test_a_fallback_encoding_serves_only_what_is_not_utf8(tmp_path):
    assert read_text(file_of(tmp_path, b"\xa315"), fallback_encoding="latin-1") == "£15"
    assert read_text(file_of(tmp_path, "£15".encode()), fallback_encoding="latin-1") == "£15"


def test_json_lines_are_split_at_line_ends_only(tmp_path):
    path = file_of(tmp_path, '{"a": "\u2028"}\r\n\n  \n[1]\n'.encode())
    assert list(read_json_lines(path)) == [(1, {"a": "\u2028"}), (4, [1])]


def test_yaml_is_plain_data_with_numbers_as_people_write_them(tmp_path):
    path = file_of(tmp_path, b"rate: 5e-4\nbig: -1E+3\nname: e5\nbase: &b {x: 1}\nmerged: {<<: *b, y: null}\n")
    assert read_yaml(path) == {
        "rate": 5e-4,
        "big": -1000.0,
        "name": "e5",
        "base": {"x": 1},
        "merged": {"x": 1, "y": None},
    }
    assert read_yaml(file_of(tmp_path, b"")) is None


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_text, b"ab\ncd\xff", r", line 2: the byte 0xff is not UTF-8"),
        (read_json, b'{"a": 1,\n "b": }', r", line 2: this is not JSON"),
        (read_json, b"", r", line 1: this is not JSON"),
        (read_json, b'{"a": 1, "b": {"c": 1, "c": 2}}', r"the key 'c' occurs twice"),
        (read_json, b"[" * 100_000, r"is not usable JSON"),
        (read_json, b"1" * 5000, r"is not usable JSON"),
        (read_json_lines, b'{"a": 1}\n\n{"a": 1', r", line 3: this is not JSON"),
        (read_json_lines, b'{"a": 1}\n{"a": 1, "a": 2}', r", line 2: .*the key 'a' occurs twice"),
        (read_yaml, b"a: 1\nb: [1, 2\nc: 3", r", line 3: this is not plain YAML"),
        (read_yaml, b"a: 1\nb:\n  c: 1\n  c: 2\n", r", line 4: .*the key 'c' stands here a second time"),
        (read_yaml, b"a: !!python/object/apply:os.system ['true']", r", line 1: .*python/object"),
        (read_yaml, b"a: 1\n---\nb: 2\n", r", line 2: this is not plain YAML"),
        (read_yaml, b"a: \x00", r"is not plain YAML"),
        (read_yaml, b"day: 2024-13-45", r"is not plain YAML"),
        (read_yaml, b"? [1]\n: 2", r"this is not plain YAML"),
        (read_yaml, b"[" * 600, r"is not plain YAML"),
    ],
)
def test_bad_content_is_refused_with_its_place(tmp_path, read, content, message):
    path = file_of(tmp_path, content)
    with pytest.raises(InputError, match=f"^{path}{message if message.startswith(',') else '.*' + message}") as caught:
        list(read(path) or ())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "read", [read_bytes, read_text, read_json, read_yaml, lambda path: list(read_json_lines(path))]
)
def test_what_is_no_file_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (("missing", "does not exist"), (".", "is not a file"), ("pipe", "is not a file")):
        with pytest.raises(InputError, match=problem):
            read(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(InputError, match=r"file cannot be read \(Permission denied\)"):
        read_text(file_of(tmp_path, b"x"))


def test_a_folder_is_one_that_can_be_listed(tmp_path, monkeypatch):
    assert require_folder(str(tmp_path)) == tmp_path
    for path in (tmp_path / "missing", file_of(tmp_path, b"")):
        with pytest.raises(InputError, match=f"{path} is not an existing folder"):
            require_folder(path)

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        require_folder(tmp_path)
