"""BBC News: 2,225 articles from 2004 and 2005 on five topics (Greene and Cunningham, ICML 2006)."""

from collections.abc import Iterator
from pathlib import Path

from mindpet.data.examples import ClassificationData, Example, divide, number_labels
from mindpet.data.language_data import LanguageData, Passage, divide_examples
from mindpet.storage.reader import read_text, require_folder

__all__ = ["load_bbc", "load_bbc_articles"]


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
    for path, text in _read_articles(folder):
        headline = text.split("\n", 1)[0].strip()
        first_of.setdefault(headline.lower(), Example(headline, path.parent.name, str(path)))
    examples = list(first_of.values())
    numbers = number_labels(examples, folder)
    return ClassificationData("BBC News headlines", tuple(numbers), *divide(examples, numbers, seed, folder))


def load_bbc_articles(folder: str | Path, seed: int) -> LanguageData:
    """Return the whole articles, headline and body, split 70/10/20 by topic and seed.

    Of articles with an equal headline, or an equal body, apart from case and spacing only the first is kept, before
    splitting: the copy of a training article, or a later version of it, must not turn up in the test split.

    Args:
        folder: Holds a folder of text files for each topic; a file's first line is the headline.
        seed: Decides the split.

    Raises:
        InputError: The folder has no topics, or a file cannot be read.
    """
    folder = require_folder(folder)
    seen: set[tuple[str, str]] = set()
    passages, topics = [], []
    for path, text in _read_articles(folder):
        headline, _, body = text.lower().partition("\n")
        keys = {("headline", " ".join(headline.split())), ("body", " ".join(body.split()))}
        if not keys & seen:
            passages.append(Passage(text.strip(), str(path)))
            topics.append(path.parent.name)
        seen |= keys
    kinds = [sorted(set(topics)).index(topic) for topic in topics]
    return LanguageData("BBC News articles", *divide_examples(passages, seed, folder, kinds=kinds))


def _read_articles(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the text of each article, in an order that does not depend on the machine."""
    for path in sorted(folder.glob("*/*.txt"), key=lambda path: (path.parent.name, path.name)):
        # One article, on a transfer fee in pounds, is Latin-1; all others are UTF-8.
        yield path, read_text(path, fallback_encoding="latin-1")
