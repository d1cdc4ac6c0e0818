import json
import random
from pathlib import Path

import numpy as np
import pytest

from mindpet.data.bbc import load_bbc
from mindpet.data.dataset import load_data
from mindpet.data.embedded import bbc_folder
from mindpet.utils.exceptions import InputError


def line(text, label, **more):
    return json.dumps({"text": text, "label": label, **more}, ensure_ascii=False)


def write_lines(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def all_texts(data):
    return [*data.train.texts, *data.valid.texts, *data.test.texts]


def assert_equal(first, second):
    assert (first.name, first.label_names) == (second.name, second.label_names)
    for split in ("train", "valid", "test"):
        assert getattr(first, split).texts == getattr(second, split).texts
        np.testing.assert_array_equal(getattr(first, split).labels, getattr(second, split).labels)


# BBC News


def test_the_embedded_headlines_are_those_of_the_specification():
    folder = bbc_folder()
    assert len(list(folder.glob("*/*.txt"))) == 2225
    data = load_data(None, seed=0)
    assert data.label_names == ("business", "entertainment", "politics", "sports", "tech")
    assert len(all_texts(data)) == 2225 - 129
    assert [len(split) for split in (data.train, data.valid, data.test)] == [1467, 210, 419]
    for split in (data.train, data.valid, data.test):
        assert split.labels.dtype == np.int32
        assert split.labels.shape == (len(split),)
        np.testing.assert_allclose(
            np.bincount(split.labels) / len(split), [0.239, 0.174, 0.189, 0.239, 0.159], atol=0.006
        )


def test_no_headline_is_in_two_splits():
    for seed in range(3):
        headlines = [text.lower() for text in all_texts(load_bbc(bbc_folder(), seed))]
        assert len(headlines) == len(set(headlines))


def small_bbc(folder, order):
    articles = {f"{topic}/{number}.txt": f"{topic} {number}\n\nBody" for topic in ("a", "b") for number in range(20)}
    articles["a/100.txt"] = "A 3\nthe same headline in another case"
    for name in order(list(articles)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(articles[name])
    (folder / "a" / "7.txt").write_bytes("Fee of £7m\nbody".encode("latin-1"))
    return folder


def test_headlines_do_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    first = load_bbc(small_bbc(tmp_path / "x", sorted), 3)
    shuffled = small_bbc(tmp_path / "y", lambda names: random.Random(0).sample(names, len(names)))
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: reversed(sorted(glob(self, pattern))))
    assert_equal(load_bbc(shuffled, 3), first)
    assert len(all_texts(first)) == 40
    assert "Fee of £7m" in all_texts(first)


def test_a_folder_without_articles_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no examples"):
        load_bbc(tmp_path, 0)
    with pytest.raises(InputError, match="is not an existing folder"):
        load_bbc(tmp_path / "missing", 0)


# JSON lines


def test_one_file_is_split_by_seed(tmp_path):
    lines = [line(f"text {number}", "spam" if number % 4 else "ham", other=1) for number in range(100)]
    path = write_lines(tmp_path / "mails.jsonl", lines)
    data = load_data(path, 0)
    assert data.name == "mails"
    assert data.label_names == ("ham", "spam")
    assert [len(split) for split in (data.train, data.valid, data.test)] == [70, 10, 20]
    assert sorted(all_texts(data)) == sorted(f"text {number}" for number in range(100))
    for split in (data.train, data.valid, data.test):
        for text, label in zip(split.texts, split.labels, strict=True):
            assert data.label_names[label] == ("spam" if int(text.split()[1]) % 4 else "ham")
    assert_equal(load_data(str(path), 0), data)
    assert load_data(path, 1).test.texts != data.test.texts


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        (["10", 9, "9"], ("9", "10")),
        (["b", "a", "10"], ("10", "a", "b")),
        (["9" * 5000, "10"], ("10", "9" * 5000)),
        (["体育", "财经"], ("体育", "财经")),
    ],
)
def test_labels_have_one_order_whatever_the_lines_have(tmp_path, labels, names):
    lines = [line(f"{label} {number}", label) for label in labels for number in range(20)]
    for order in (lines, lines[::-1]):
        assert load_data(write_lines(tmp_path / "x.jsonl", order), 0).label_names == names


def test_a_folder_keeps_its_own_splits(tmp_path):
    texts = {"train": ["a b", "c d", "e\u2028f"], "valid": ["g"], "test": ["h", "i"]}
    for name, split in texts.items():
        write_lines(tmp_path / f"{name}.jsonl", [line(text, index % 2) for index, text in enumerate(split)])
    data = load_data(tmp_path, 0)
    assert data.name == tmp_path.name
    assert data.label_names == ("0", "1")
    for name, split in texts.items():
        assert getattr(data, name).texts == tuple(split)
        np.testing.assert_array_equal(getattr(data, name).labels, np.arange(len(split)) % 2)


def test_without_valid_a_tenth_of_train_is_set_aside(tmp_path):
    write_lines(tmp_path / "train.jsonl", [line(f"t{number}", number % 2) for number in range(50)])
    write_lines(tmp_path / "test.jsonl", [line("x", 1)])
    data = load_data(tmp_path, 0)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [45, 5, 1]
    assert {*data.train.texts, *data.valid.texts} == {f"t{number}" for number in range(50)}
    assert load_data(tmp_path, 1).valid.texts != data.valid.texts


GOOD = [line(f"text {number}", "ab"[number % 2]) for number in range(40)]


@pytest.mark.parametrize(
    ("files", "place", "message"),
    [
        ({"f.jsonl": []}, "f.jsonl", "is empty"),
        ({"f.jsonl": [*GOOD, "{"]}, "f.jsonl, line 41", "this is not JSON"),
        ({"f.jsonl": [GOOD[0], "", "3"]}, "f.jsonl, line 3", "expected a JSON object"),
        ({"f.jsonl": ['{"text": "x"}']}, "f.jsonl, line 1", "the key 'label' is missing .found 'text'.; add it"),
        ({"f.jsonl": ['{"label": "x"}']}, "f.jsonl, line 1", "the key 'text' is missing"),
        ({"f.jsonl": ["{}"]}, "f.jsonl, line 1", "the key 'text' is missing .found no key"),
        ({"f.jsonl": [line(" ", "x")]}, "f.jsonl, line 1", "'text' is empty"),
        ({"f.jsonl": [line("x", " ")]}, "f.jsonl, line 1", "'label' is empty"),
        ({"f.jsonl": [line(3, "x")]}, "f.jsonl, line 1", "'text' is 3; expected a text"),
        ({"f.jsonl": [line("x", True)]}, "f.jsonl, line 1", "'label' is True; expected a text or a whole number"),
        ({"f.jsonl": [line("x", 1.0)]}, "f.jsonl, line 1", "'label' is 1.0; expected a text or a whole number"),
        ({"f.jsonl": [line("x", None)]}, "f.jsonl, line 1", "'label' is None; expected"),
        ({"f.jsonl": [line("x", ["a"])]}, "f.jsonl, line 1", "expected a text or a whole number"),
        ({"f.jsonl": ['{"text": "\\ud83d", "label": 1}']}, "f.jsonl, line 1", "'text' holds half a character"),
        ({"f.jsonl": ['{"text": "x", "label": 1, "label": 2}']}, "f.jsonl, line 1", "the key 'label' occurs twice"),
        ({"f.jsonl": [line("x", "a"), line("y", "a")]}, "f.jsonl", "has the one label 'a' only"),
        ({"f.jsonl": GOOD[:3]}, "f.jsonl", "3 examples of 2 labels are too few"),
        ({"train.jsonl": GOOD}, "test.jsonl", "is missing"),
        ({"train.jsonl": [], "test.jsonl": GOOD}, "train.jsonl", "is empty"),
        ({"train.jsonl": GOOD, "test.jsonl": []}, "test.jsonl", "is empty"),
        ({"train.jsonl": GOOD, "valid.jsonl": [], "test.jsonl": GOOD}, "valid.jsonl", "is empty"),
        ({"train.jsonl": GOOD[:1], "test.jsonl": GOOD}, "train.jsonl", "has the one label 'a' only"),
        ({"train.jsonl": GOOD[:2], "test.jsonl": GOOD}, "train.jsonl", "2 examples of 2 labels are too few"),
        (
            {"train.jsonl": GOOD, "test.jsonl": [GOOD[0], line("x", "c")]},
            "test.jsonl, line 2",
            "has the label 'c'; known are",
        ),
        (
            {
                "train.jsonl": [line("x", "sport"), line("y", "tech")],
                "valid.jsonl": [line("z", "sports")],
                "test.jsonl": GOOD,
            },
            "valid.jsonl, line 1",
            "no training example has the label 'sports'; did you mean 'sport'",
        ),
        ({"train.json": GOOD}, "dev.json", "is missing"),
        ({"train.json": GOOD, "dev.json": GOOD}, "train.json, line 1", "the key 'sentence' is missing"),
        ({"train.txt": GOOD}, "", "holds neither train.jsonl nor train.json; expected are"),
    ],
)
def test_bad_data_is_refused_with_file_and_line(tmp_path, files, place, message):
    for name, lines in files.items():
        write_lines(tmp_path / name, lines)
    source = tmp_path / "f.jsonl" if "f.jsonl" in files else tmp_path
    with pytest.raises(InputError, match=f"^{tmp_path / place}[: ].*{message}") as caught:
        load_data(source, 0)
    assert "\n" not in str(caught.value)


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'missing'} does not exist"):
        load_data(tmp_path / "missing", 0)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        load_data(tmp_path / ("long" * 100), 0)


# CLUE


def clue_folder(folder, key, published, count=20):
    rows = [
        {"label": label, key: name, "sentence": f"{name}第{number}条", "keywords": ""}
        for number in range(count)
        for label, name in published.items()
    ]
    write_lines(folder / "train.json", [json.dumps(row, ensure_ascii=False) for row in rows])
    dev = [{"label": label, key: name, "sentence": f"{name}开发"} for label, name in published.items()]
    write_lines(folder / "dev.json", [json.dumps(row, ensure_ascii=False) for row in dev])
    write_lines(folder / "test.json", [json.dumps({"id": 0, "sentence": "没有标签"}, ensure_ascii=False)])
    write_lines(folder / "labels.json", [json.dumps({"label": label, key: name}) for label, name in published.items()])
    return folder


@pytest.mark.parametrize(
    ("key", "published", "names"),
    [
        (
            "label_desc",
            {"108": "news_edu", "100": "news_story", "109": "news_tech"},
            ("news_story", "news_edu", "news_tech"),
        ),
        ("label_des", {"11": "薅羊毛", "2": "免费WIFI", "0": "打车"}, ("打车", "免费WIFI", "薅羊毛")),
        ("label_des", {11: "薅羊毛", 2: "免费WIFI"}, ("免费WIFI", "薅羊毛")),
        ("label_des", {"0": "其他", "1": "其他"}, ("0", "1")),
        ("unnamed", {"10": "x", "9": "y"}, ("9", "10")),
    ],
)
def test_a_clue_folder_is_read_as_downloaded(tmp_path, key, published, names):
    data = load_data(clue_folder(tmp_path / "tnews", key, published), 0)
    assert data.name == "tnews"
    assert data.label_names == names
    total = 20 * len(published)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [
        total * 9 // 10,
        total // 10,
        len(published),
    ]
    assert data.test.texts == tuple(f"{name}开发" for name in published.values())
    numbers = sorted(published, key=int)
    np.testing.assert_array_equal(data.test.labels, [numbers.index(label) for label in published])
    assert_equal(load_data(tmp_path / "tnews", 0), data)


def test_a_label_that_only_dev_has_is_refused(tmp_path):
    folder = clue_folder(tmp_path / "tnews", "label_desc", {"100": "a", "101": "b"})
    write_lines(folder / "dev.json", [json.dumps({"label": "102", "sentence": "x", "label_desc": "c"})])
    with pytest.raises(InputError, match=r"dev.json, line 1: no training example has the label '102'"):
        load_data(folder, 0)
