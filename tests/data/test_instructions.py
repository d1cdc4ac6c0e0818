import csv
import io
import json

import pytest

from mindpet.data.bbc import load_bbc_articles
from mindpet.data.embedded import bbc_folder
from mindpet.data.instructions import load_instructions
from mindpet.data.language_data import Conversation, Passage
from mindpet.utils.exceptions import InputError
from tests.data.test_dataset import small_bbc

ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
FORMS = [
    ({"text": "A passage."}, None),
    ({"prompt": "Say 你好", "completion": "你好", "id": 3}, [("user", "Say 你好"), ("assistant", "你好")]),
    ({"instruction": "Add.", "output": "3"}, [("user", "Add."), ("assistant", "3")]),
    ({"instruction": "Add.", "input": "1 + 2", "output": "3"}, [("user", "Add.\n\n1 + 2"), ("assistant", "3")]),
    ({"instruction": "Add.", "input": " ", "output": "3"}, [("user", "Add."), ("assistant", "3")]),
    (
        {"messages": [{"role": "system", "content": "S"}, *ASKED, *ASKED]},
        [("system", "S"), ("user", "Hi"), ("assistant", "Ho"), ("user", "Hi"), ("assistant", "Ho")],
    ),
]


def everything(data):
    return [*data.train, *data.valid, *data.test]


def write_jsonl(path, records):
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_csv(path, records):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, records[0].keys())
    writer.writeheader()
    writer.writerows(
        {key: value if isinstance(value, (str, int)) else json.dumps(value) for key, value in record.items()}
        for record in records
    )
    path.write_bytes(text.getvalue().encode("utf-8-sig"))
    return path


def write_mindrecord(path, records, parts=1):
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(path), shard_num=parts, overwrite=True)
    kinds = {str: "string", int: "int32", list: "string"}
    writer.add_schema({key: {"type": kinds[type(value)]} for key, value in records[0].items()}, "records")
    writer.write_raw_data(
        [
            {key: json.dumps(value) if isinstance(value, list) else value for key, value in record.items()}
            for record in records
        ]
    )
    writer.commit()
    return path if parts == 1 else path.with_name(f"{path.name}0")


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "mindrecord": write_mindrecord}


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(("record", "turns"), FORMS)
def test_each_form_is_read_from_each_kind_of_file(tmp_path, ending, record, turns):
    path = WRITERS[ending](tmp_path / f"talks.{ending}", [record] * 10)
    data = load_instructions(path, 0)
    assert data.name == "talks"
    assert [len(split) for split in (data.train, data.valid, data.test)] == [7, 1, 2]
    for example in everything(data):
        if turns is None:
            assert isinstance(example, Passage) and example.text == "A passage."
        else:
            assert isinstance(example, Conversation) and list(example.messages) == turns


def test_one_file_is_split_by_seed(tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": f"text {number}"} for number in range(50)])
    splits = [load_instructions(path, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    texts = [example.text for example in everything(splits[0])]
    assert len(texts) == len(set(texts)) == 50
    for example in everything(splits[0]):
        number = int(example.text.split()[1])
        assert example.place == f"{path}, line {number + 1}"


def test_a_folder_keeps_its_own_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a"}, {"text": "b"}])
    long = "yes " * 40_000  # longer than what Python's csv takes of itself
    limit = csv.field_size_limit()
    write_csv(tmp_path / "valid.csv", [{"text": 'with "quotes",\r\nand\nlines\r.'}, {"text": long}])
    write_mindrecord(tmp_path / "test.mindrecord", [{"text": f"t{number}"} for number in range(5)], parts=2)
    data = load_instructions(tmp_path, 0)
    assert data.name == tmp_path.name
    assert [example.text for example in data.train] == ["a", "b"]
    assert [example.text for example in data.valid] == ['with "quotes",\r\nand\nlines\r.', long]
    assert csv.field_size_limit() == limit
    assert sorted(example.text for example in data.test) == [f"t{number}" for number in range(5)]
    assert data.test[0].place.startswith(f"{tmp_path / 'test.mindrecord0'}, record ")


def test_without_valid_a_tenth_of_train_is_set_aside(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"t{number}"} for number in range(30)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "x"}])
    data = load_instructions(tmp_path, 0)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [27, 3, 1]


def talk(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.mark.parametrize(
    ("files", "place", "message"),
    [
        ({"f.jsonl": [{"texts": "x"}]}, "f.jsonl, line 1", "found 'texts'; expected are 'instruction' and 'output'"),
        ({"f.jsonl": [{"text": "x"}, {"prompt": "x"}]}, "f.jsonl, line 2", "found 'prompt'; expected are"),
        ({"f.jsonl": [{}]}, "f.jsonl, line 1", "found no key"),
        ({"f.jsonl": [{"text": " "}]}, "f.jsonl, line 1", "'text' is empty"),
        ({"f.jsonl": [{"text": 3}]}, "f.jsonl, line 1", "'text' is 3; expected a text"),
        ({"f.jsonl": [{"prompt": "x", "completion": ""}]}, "f.jsonl, line 1", "'completion' is empty"),
        ({"f.jsonl": [{"instruction": "x", "output": "y", "input": 3}]}, "f.jsonl, line 1", "'input' is 3; expected"),
        ({"f.jsonl": [{"messages": "x"}]}, "f.jsonl, line 1", "'messages' is no JSON"),
        ({"f.jsonl": [{"messages": [3]}]}, "f.jsonl, line 1", r"'messages' is \[3\]; expected a list of objects"),
        ({"f.jsonl": [talk()]}, "f.jsonl, line 1", "the last message is missing"),
        ({"f.jsonl": [talk(("user", "x"))]}, "f.jsonl, line 1", "the last message is of 'user'; end with"),
        ({"f.jsonl": [talk(("assistant", "x"))]}, "f.jsonl, line 1", "no 'user' message stands before"),
        (
            {"f.jsonl": [talk(("user", "x"), ("asistant", "y"))]},
            "f.jsonl, line 1, message 2",
            "there is no role 'asistant'; did you mean 'assistant'",
        ),
        ({"f.jsonl": [talk(("gpt", "x"))]}, "f.jsonl, line 1, message 1", "no role 'gpt'; known are 'system', 'user'"),
        ({"f.jsonl": [talk(("user", "x"), ("assistant", ""))]}, "f.jsonl, line 1, message 2", "'content' is empty"),
        (
            {"f.jsonl": [talk(("user", "x"), ("system", "y"), ("assistant", "z"))]},
            "f.jsonl, line 1",
            "a 'system' message stands behind others",
        ),
        ({"f.jsonl": [{"messages": [{"role": "user"}]}]}, "f.jsonl, line 1, message 1", "the key 'content' is missing"),
        ({"f.jsonl": [{"text": "a"}] * 2}, "f.jsonl", "holds 2 examples, too few for 3 splits"),
        ({"f.jsonl": []}, "f.jsonl", "is empty"),
        ({"f.jsonl": ["{"]}, "f.jsonl, line 1", "this is not JSON"),
        ({"f.csv": ["text", "a", '"b']}, "f.csv, line 3", "this is not CSV .unexpected end of data"),
        ({"f.csv": ["text,more", "a,b", "c", "d,e"]}, "f.csv, line 3", "1 values for 2 columns"),
        ({"f.csv": ["text,more", '"a', 'b",c', "", "d"]}, "f.csv, line 5", "1 values for 2 columns"),
        ({"f.csv": ["text,text", "a,b"]}, "f.csv, line 1", "a column's name stands there twice"),
        ({"f.csv": ["text"]}, "f.csv", "holds no records"),
        ({"f.csv": ["label", "a"]}, "f.csv, line 2", "found 'label'; expected are"),
        ({"f.mindrecord": ["x"]}, "f.mindrecord", "cannot be read as MindRecord"),
        ({"train.jsonl": [{"text": "x"}]}, "", "holds no test file; expected are train, test"),
        ({"test.jsonl": [{"text": "x"}]}, "", "holds no train file"),
        ({"train.jsonl": [], "train.csv": ["text"]}, "", "holds train.csv and train.jsonl; leave one"),
        ({"train.jsonl": [{"text": "x"}] * 9, "test.jsonl": []}, "test.jsonl", "is empty"),
        ({"train.jsonl": [{"text": "x"}], "test.jsonl": [{"text": "y"}]}, "train.jsonl", "holds 1 examples, too few"),
    ],
)
def test_bad_data_is_refused_with_file_and_line(tmp_path, files, place, message):
    for name, records in files.items():
        write_jsonl(tmp_path / name, records)
    source = tmp_path / next(iter(files)) if next(iter(files)).startswith("f.") else tmp_path
    with pytest.raises(InputError, match=f"^{tmp_path / place}[: ].*{message}") as caught:
        load_instructions(source, 0)
    assert "\n" not in str(caught.value)


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'missing.csv'} does not exist"):
        load_instructions(tmp_path / "missing.csv", 0)
    with pytest.raises(InputError, match=r"cannot be read \(File name too long\)"):
        load_instructions(tmp_path / ("long" * 100), 0)


def test_a_csv_that_is_no_utf_8_is_refused_by_line(tmp_path):
    (tmp_path / "f.csv").write_bytes(b'text\r\n"a\r\nb"\r\n\xff\r\n')
    with pytest.raises(InputError, match=r"f.csv, line 4: the byte 0xff is not UTF-8"):
        load_instructions(tmp_path / "f.csv", 0)


def test_a_mindrecord_without_its_database_says_so(tmp_path):
    path = write_mindrecord(tmp_path / "f.mindrecord", [{"text": "x"}])
    path.with_name("f.mindrecord.db").unlink()
    with pytest.raises(InputError, match=r"f.mindrecord cannot be read as MindRecord .*keep its .db file beside it"):
        load_instructions(path, 0)


# BBC articles


def test_the_embedded_articles_are_whole_and_none_is_in_two_splits():
    data = load_instructions(None, 0)
    assert data == load_bbc_articles(bbc_folder(), 0)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [1442, 206, 412]
    articles = [example.text.lower().partition("\n") for example in everything(data)]
    for part in (0, 2):
        texts = [" ".join(article[part].split()) for article in articles]
        assert len(texts) == len(set(texts)) == 2225 - 165


def test_copies_and_later_versions_of_an_article_are_left_out(tmp_path):
    folder = small_bbc(tmp_path / "bbc", sorted)
    for number, path in enumerate(sorted(folder.glob("*/*.txt"))):
        if path.name != "100.txt":
            path.write_text(f"{path.parent.name} {path.stem}\n\nBody {number}")
    (folder / "a" / "200.txt").write_text("Another headline\n\nbody  0\n")
    data = load_bbc_articles(folder, 3)
    assert len(everything(data)) == 40
    first, copy = "A 3\nthe same headline in another case", "a 3\n\nBody"  # a/100.txt comes before a/3.txt
    texts = [example.text for example in everything(data)]
    assert first in texts and not any(text.startswith(copy) for text in texts)
    assert data != load_bbc_articles(folder, 4)
