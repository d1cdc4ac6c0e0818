"""One's own data: a JSON object with `text` and `label` on each line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mindpet.data.examples import ClassificationData, Example, divide, number_labels, to_split, with_valid_from_train
from mindpet.storage.reader import read_json_lines
from mindpet.utils.exceptions import InputError

__all__ = ["load_jsonl_file", "load_jsonl_folder", "read_field", "read_objects"]


def load_jsonl_file(path: str | Path, seed: int) -> ClassificationData:
    """Return the examples of one file, split 70/10/20 by label and seed.

    Each line is an object with `text` and `label`, both not blank. A label is a text or a whole number; 3 and "3" are
    the same label. Other keys are ignored.

    Raises:
        InputError: A line is not such an object (file and line are named), or there are too few examples or labels.
    """
    path = Path(path)
    examples = _read_examples(path)
    numbers = number_labels(examples, path)
    return ClassificationData(path.stem, tuple(numbers), *divide(examples, numbers, seed, path))


def load_jsonl_folder(folder: str | Path, seed: int) -> ClassificationData:
    """Return the examples of train.jsonl, valid.jsonl and test.jsonl in `folder`; lines as in `load_jsonl_file`.

    Without a valid.jsonl, a tenth of the training examples becomes the valid split, by label and seed.

    Raises:
        InputError: train.jsonl or test.jsonl is missing or empty, a line is wrong, or valid or test has a label that no
            training example has (file and line are named).
    """
    folder = Path(folder)
    train_path, valid_path, test_path = (folder / f"{name}.jsonl" for name in ("train", "valid", "test"))
    if not test_path.is_file():
        raise InputError(f"{test_path} is missing; expected are train.jsonl, test.jsonl and, if you like, valid.jsonl.")
    train, test = _read_examples(train_path), _read_examples(test_path)
    if not valid_path.exists():
        return with_valid_from_train(folder.absolute().name, train, test, seed, train_path)
    numbers = number_labels(train, train_path)
    splits = [to_split(examples, numbers) for examples in (train, _read_examples(valid_path), test)]
    return ClassificationData(folder.absolute().name, tuple(numbers), *splits)


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for each line, the place being the file and line to name in an error message.

    Raises:
        InputError: The file cannot be read or has no lines, or a line is not a JSON object.
    """
    empty = True
    for line, value in read_json_lines(path):
        empty = False
        place = f"{path}, line {line}"
        if not isinstance(value, dict):
            raise InputError(f"{place}: expected a JSON object in braces; write one object a line.")
        yield place, value
    if empty:
        raise InputError(f"{path} is empty; write one JSON object a line.")


def read_field(place: str, value: dict[str, Any], key: str, kinds: tuple[type, ...]) -> str:
    """Return the field `key` of an object as text.

    Raises:
        InputError: The field is missing, of no accepted type, or no valid Unicode text.
    """
    if key not in value:
        raise InputError(
            f"{place}: the key {key!r} is missing (found {', '.join(map(repr, value)) or 'no key'}); add it."
        )
    if type(value[key]) not in kinds:
        accepted = " or a ".join("text" if kind is str else "whole number" for kind in kinds)
        raise InputError(f"{place}: {key!r} is {value[key]!r:.40}; expected a {accepted}: correct the line.")
    text = str(value[key])
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{place}: {key!r} holds half a character (a lone surrogate); correct the line.")
    return text


def _read_examples(path: Path) -> list[Example]:
    examples = []
    for place, value in read_objects(path):
        example = Example(
            read_field(place, value, "text", (str,)), read_field(place, value, "label", (str, int)), place
        )
        for key in ("text", "label"):
            if not getattr(example, key).strip():
                raise InputError(f"{place}: {key!r} is empty; fill it in or delete the line.")
        examples.append(example)
    return examples
