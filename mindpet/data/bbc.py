"""BBC News: headlines of 2,225 articles from 2004 and 2005 on five topics (Greene and Cunningham, ICML 2006)."""

from pathlib import Path

from mindpet.data.examples import ClassificationData, Example, divide, number_labels
from mindpet.storage.reader import read_text, require_folder

__all__ = ["load_bbc"]


def load_bbc(folder: str | Path, seed: int) -> ClassificationData:
    """Return the headlines with their topics, split 70/10/20 by topic and seed.

    Some articles stand in the collection twice. Of headlines that are equal apart from case only the first is kept,
    before splitting: the copy of a training headline must not turn up in the test split.

    Args:
        folder: Holds a folder of text files for each topic; a file's first line is the headline.
        seed: Decides the split.

    Raises:
        InputError: The folder has no topics, or a file cannot be read.
    """
    folder = require_folder(folder)
    first_of: dict[str, Example] = {}
    for path in sorted(folder.glob("*/*.txt"), key=lambda path: (path.parent.name, path.name)):
        # One article, on a transfer fee in pounds, is Latin-1; all others are UTF-8.
        headline = read_text(path, fallback_encoding="latin-1").split("\n", 1)[0].strip()
        first_of.setdefault(headline.lower(), Example(headline, path.parent.name, str(path)))
    examples = list(first_of.values())
    numbers = number_labels(examples, folder)
    return ClassificationData("BBC News headlines", tuple(numbers), *divide(examples, numbers, seed, folder))
