"""What an opened network says of texts, line by line as they come in."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mindpet.data.batches import Batches
from mindpet.storage.atomic import publish_file
from mindpet.train.completing import Writing, complete
from mindpet.train.evaluate import run_batches
from mindpet.train.serve import Notify, Served
from mindpet.utils.exceptions import InputError

__all__ = ["answer", "check_output", "classify", "logits_of", "read_lines", "write_lines"]

_NARROWEST = 32  # tokens; wider batches are twice, four times ... as wide
_CHUNK_BYTES = 1 << 16
_MARK = "\ufeff".encode()  # the byte order mark that some editors begin a file with


class Stream(Protocol):
    """What bytes are read from."""

    def read1(self, size: int, /) -> bytes:
        """Return what is there, at most so many bytes; wait where nothing is there, and return none at the end."""


def read_lines(stream: Stream, most: int) -> Iterator[list[bytes]]:
    """Yield the lines of a stream as soon as they are there, at most so many at once, without their line ends."""
    rest, is_first = b"", True
    while chunk := stream.read1(_CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines and is_first:
            lines[0], is_first = lines[0].removeprefix(_MARK), False
        for begin in range(0, len(lines), most):
            yield [line.removesuffix(b"\r") for line in lines[begin : begin + most]]
    if rest:
        last = rest.removeprefix(_MARK) if is_first else rest
        yield [last.removesuffix(b"\r")]


def answer(
    served: Served, groups: Iterable[Sequence[bytes]], writing: Writing, notify: Notify
) -> Iterator[dict[str, Any]]:
    """Yield an answer to each line, in order: there are as many answers as lines, also where a line is empty.

    Bytes that are no UTF-8 are replaced by U+FFFD.

    Args:
        served: The network.
        groups: Lines that are there at once, for example from `read_lines`.
        writing: How a language model goes on.
        notify: Called with one sentence for each line that could not be taken as it is.

    Yields:
        What `classify` or `complete` returns for a text.

    Raises:
        InputError: `writing` is not the default, and the network is a classifier.
    """
    if not served.is_language and writing != Writing():
        raise InputError(f"{served.path}: a classifier writes nothing; leave out the options of language models")
    if writing.sampling.temperature:
        groups = _fill(groups, served.settings.batch_size)
    done = 0
    for lines in groups:
        texts = [_decode(line, number, notify) for number, line in enumerate(lines, done + 1)]
        if served.is_language:
            yield from complete(served, texts, writing, notify, done + 1)
        else:
            yield from classify(served, texts)
        done += len(texts)


def classify(served: Served, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the label of each text and the probability of each label, in the order of the texts.

    A text of nothing but blanks has neither: there is nothing to read in it.

    Args:
        served: A classifier of a run.
        texts: N texts.

    Returns:
        N objects with `text`, `label`, and `probabilities` by label; or None for the last two.
    """
    names = served.label_names or ()
    answers: list[dict[str, Any]] = [{"text": text, "label": None, "probabilities": None} for text in texts]
    places = [place for place, text in enumerate(texts) if text.strip()]
    if places:
        rows = _softmax(logits_of(served, [texts[place] for place in places]))
        for place, row in zip(places, rows, strict=True):
            probabilities = {name: round(float(value), 6) for name, value in zip(names, row, strict=True)}
            answers[place] |= {"label": names[int(row.argmax())], "probabilities": probabilities}
    return answers


def logits_of(served: Served, texts: Sequence[str]) -> np.ndarray:
    """Return what a classifier's network gives for texts, float32 (texts, classes).

    Batches have few constant shapes, the same for any texts, so that graphs are compiled once and a text gets the same
    numbers in whatever company it comes.
    """
    encoded = served.tokenizer.encode(texts, served.longest)
    labels = np.zeros(len(texts), np.int32)
    batches = Batches(encoded, labels, served.settings.batch_size, _widths(served.longest), served.tokenizer.pad_id)
    return run_batches(served.network, batches)


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse a file that cannot be written without losing another one.

    Raises:
        InputError: It exists and is not to be replaced, or its folder does not exist.
    """
    if out.exists() and not (overwrite and out.is_file()):
        raise InputError(f"{out}: exists already; choose another with --out or pass --overwrite")
    if not out.parent.is_dir():
        raise InputError(f"{out}: {out.parent} is no existing folder; choose another with --out")


def write_lines(out: Path, values: Iterable[Any]) -> None:
    """Write values as JSON, one a line, into a file that appears when all of them are there.

    Raises:
        InputError: It cannot be written.
    """
    staged = out.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(value, ensure_ascii=False)}\n" for value in values)
        publish_file(staged, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); choose another with --out") from error
    finally:
        staged.unlink(missing_ok=True)


def _decode(line: bytes, number: int, notify: Notify) -> str:
    text = line.decode(errors="replace")
    if text.encode() != line:
        notify(f"text {number}: bytes that are no UTF-8 were replaced by U+FFFD")
    return text


def _fill(groups: Iterable[Sequence[bytes]], size: int) -> Iterator[list[bytes]]:
    """Yield full groups: where chance decides, answers must not depend on how fast lines come in."""
    lines = (line for group in groups for line in group)
    while full := list(islice(lines, size)):
        yield full


def _widths(longest: int) -> list[int]:
    widths = []
    width = _NARROWEST
    while width < longest:
        widths.append(width)
        width *= 2
    return [*widths, longest]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
