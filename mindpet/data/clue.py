"""The classification tasks of CLUE (arXiv:2004.05986) as they are downloaded: TNEWS and IFLYTEK."""

from pathlib import Path

from mindpet.data.examples import ClassificationData, Example, with_valid_from_train
from mindpet.data.jsonl import read_field, read_objects
from mindpet.utils.exceptions import InputError

__all__ = ["load_clue"]

_NAME_KEYS = ("label_desc", "label_des")  # TNEWS writes the first, IFLYTEK the second.


def load_clue(folder: str | Path, seed: int) -> ClassificationData:
    """Return TNEWS or IFLYTEK.

    Each line of train.json and dev.json is an object with `sentence`, `label` (a number, mostly written as a text) and
    the label's name as `label_desc` or `label_des`. The labels of test.json are not published, so dev.json becomes the
    test split, and a tenth of train.json, by label and seed, the valid split. test.json and labels.json are not read. A
    benchmark is used whole: an empty sentence is no error here.

    Args:
        folder: The unpacked download.
        seed: Decides which training examples become the valid split.

    Returns:
        Classes ordered by label number; their names are the published ones where every label has one of its own.

    Raises:
        InputError: dev.json is missing, a line is not such an object, or dev.json has a label that train.json lacks
            (file and line are named).
    """
    folder = Path(folder)
    train_path, dev_path = folder / "train.json", folder / "dev.json"
    if not dev_path.is_file():
        raise InputError(
            f"{dev_path} is missing; a CLUE folder has train.json and dev.json: unpack the download again."
        )
    published: dict[str, str] = {}
    train = _read_examples(train_path, published)
    test = _read_examples(dev_path, {})
    data = with_valid_from_train(folder.absolute().name, train, test, seed, train_path)
    names = tuple(published.get(label, label) for label in data.label_names)
    if len(set(names)) < len(names):
        return data
    return ClassificationData(data.name, names, data.train, data.valid, data.test)


def _read_examples(path: Path, published: dict[str, str]) -> list[Example]:
    """Return the examples of a file, and note each label's published name in `published`."""
    examples = []
    for place, value in read_objects(path):
        sentence = read_field(place, value, "sentence", (str,))
        label = read_field(place, value, "label", (str, int))
        for key in _NAME_KEYS:
            if key in value:
                published.setdefault(label, read_field(place, value, key, (str,)))
        examples.append(Example(sentence, label, place))
    return examples
