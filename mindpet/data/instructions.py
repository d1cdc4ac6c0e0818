"""Instructions, conversations and plain texts from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindpet.data.bbc import load_bbc_articles
from mindpet.data.chat import ASSISTANT, Message
from mindpet.data.embedded import bbc_folder
from mindpet.data.jsonl import read_field
from mindpet.data.language_data import Conversation, LanguageData, LanguageExample, Passage, divide_examples
from mindpet.data.records import find_splits, read_records
from mindpet.data.splits import VALID_SHARE
from mindpet.storage.reader import is_folder, parse_json
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["load_instructions"]

_ROLES = ("system", "user", ASSISTANT)


def load_instructions(
    source: str | Path | None, seed: int, notify: Callable[[str], None] | None = None
) -> LanguageData:
    """Return the language data that `source` names.

    A record has one of these forms; other keys are ignored.

    - `instruction`, `output` and perhaps `input`: the user's message is the instruction, an empty line and the input.
    - `prompt`, `completion`: the user's message and the answer.
    - `messages`: a list of objects with `role` ('system', 'user', 'assistant') and `content`. In CSV and MindRecord it
      is such a list as JSON text.
    - `text`: a passage for language modelling.

    Args:
        source: None for the embedded BBC articles; a file of records (JSON lines, CSV, MindRecord), split 70/10/20 by
            seed; or a folder with train, test and perhaps valid files of them. Without a valid file, a tenth of the
            training records becomes the valid split.
        seed: Decides every split that the source leaves open.
        notify: Called with one sentence before the embedded data is fetched or unpacked.

    Raises:
        InputError: There is no such source, or a record has none of the forms (file and line are named).
    """
    if source is None:
        return load_bbc_articles(bbc_folder(notify), seed)
    source = Path(source)
    if not is_folder(source):
        return LanguageData(source.stem, *divide_examples(_read_examples(source), seed, source))
    files = find_splits(source)
    splits = {split: tuple(_read_examples(path)) for split, path in files.items()}
    if "valid" not in splits:
        shares = (1 - VALID_SHARE, VALID_SHARE)
        splits["train"], splits["valid"] = divide_examples(splits["train"], seed, files["train"], shares)
    return LanguageData(source.absolute().name, **splits)


def _read_examples(path: Path) -> list[LanguageExample]:
    return [_example(place, record) for place, record in read_records(path)]


def _example(place: str, record: dict[str, Any]) -> LanguageExample:
    if "messages" in record:
        return Conversation(_messages(place, record["messages"]), place)
    if "text" in record:
        return Passage(_filled(place, record, "text"), place)
    if {"prompt", "completion"} <= record.keys():
        return _one_turn(place, _filled(place, record, "prompt"), _filled(place, record, "completion"))
    if {"instruction", "output"} <= record.keys():
        question = _filled(place, record, "instruction")
        if record.get("input") and (given := read_field(place, record, "input", (str,))).strip():
            question = f"{question}\n\n{given}"
        return _one_turn(place, question, _filled(place, record, "output"))
    found = ", ".join(map(repr, record)) or "no key"
    raise InputError(
        f"{place}: found {found}; expected are 'instruction' and 'output', 'prompt' and 'completion', 'messages', or "
        "'text': name the keys so."
    )


def _filled(place: str, record: dict[str, Any], key: str) -> str:
    text = read_field(place, record, key, (str,))
    if not text.strip():
        raise InputError(f"{place}: {key!r} is empty; fill it in or delete the record.")
    return text


def _one_turn(place: str, question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message(ASSISTANT, answer)), place)


def _messages(place: str, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: 'messages' is no JSON ({error}); write a list of messages as JSON.") from error
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InputError(f"{place}: 'messages' is {value!r:.40}; expected a list of objects with 'role' and 'content'.")
    messages = tuple(_message(f"{place}, message {number}", message) for number, message in enumerate(value, start=1))
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise InputError(f"{place}: a 'system' message stands behind others; put it first.")
    if not roles or roles[-1] != ASSISTANT:
        last = f"of {roles[-1]!r}" if roles else "missing"
        raise InputError(f"{place}: the last message is {last}; end with the assistant's answer, which is learnt.")
    if "user" not in roles[: roles.index(ASSISTANT)]:
        raise InputError(f"{place}: no 'user' message stands before the first answer; begin with the user's.")
    return messages


def _message(place: str, value: dict[str, Any]) -> Message:
    role = read_field(place, value, "role", (str,))
    if role not in _ROLES:
        near = nearest_names(role, _ROLES, count=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(map(repr, _ROLES))}."
        raise InputError(f"{place}: there is no role {role!r}; {hint}")
    return Message(role, _filled(place, value, "content"))
