"""Chat templates: conversations to the very text that a model was trained on."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mindpet.data.special_tokens import read_special_tokens, read_tokenizer_config, tokenizer_class
from mindpet.storage.reader import read_text, require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["ASSISTANT", "ChatTemplate", "Message", "Part", "load_chat_template"]

ASSISTANT = "assistant"  # the role whose messages are learnt

_PLAIN = """\
{%- for message in messages -%}
{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}
{{- eos_token if message['role'] == 'assistant' }}{{ '\\n\\n' if not loop.last or add_generation_prompt }}
{%- endfor -%}
{{- '### Assistant:\\n' if add_generation_prompt }}"""

# As ChatGLM2's own chat method builds its prompt. A system message, which it does not know, stands first.
_CHATGLM2 = """\
{%- set state = namespace(round=0) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- set state.round = state.round + 1 -%}
{{- '[Round ' ~ state.round ~ ']\\n\\n问：' + message['content'] + '\\n\\n答：' }}
{%- else -%}
{{- message['content'] }}{{ '\\n\\n' if not loop.last }}
{%- endif -%}
{%- endfor -%}"""


class Message(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: 'system', 'user', 'assistant', or what else the model's template knows.
        content: The text.
    """

    role: str
    content: str


class Part(NamedTuple):
    """A piece of a text.

    Attributes:
        text: The piece.
        is_target: Whether the model has to learn to write it.
    """

    text: str
    is_target: bool


class ChatTemplate:
    """Renders conversations as transformers' `apply_chat_template` does.

    Args:
        text: The template in Jinja, which runs in a sandbox.
        special: The special tokens by their roles; the template sees them under these names.
        place: The file to name in an error message.
        adds_special_tokens: Whether the tokenizer has to add its special tokens around a rendered text; if not, the
            template writes those that there must be.

    Raises:
        InputError: The text is no Jinja template.
    """

    def __init__(self, text: str, special: dict[str, str], place: str | Path, adds_special_tokens: bool = False):
        self.text = text
        self.place = place
        self.adds_special_tokens = adds_special_tokens
        self._special = special
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise InputError(f"{place}: the chat template is no Jinja ({error}); fetch the file again.") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to end with what comes before the assistant's next answer.

        Raises:
            InputError: The template refuses these messages.
        """
        values = [message._asdict() for message in messages]
        try:
            return self._template.render(
                messages=values,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # A template is a program: it can fail in any way.
            raise InputError(
                f"{self.place}: the chat template refuses the roles {', '.join(message.role for message in messages)} "
                f"({error}); give messages as the model expects them."
            ) from error

    def split(self, messages: Sequence[Message]) -> tuple[Part, ...]:
        """Return the text of a conversation up to its last answer, cut where the assistant's answers begin and end.

        An answer begins behind what comes before it in generation, and ends with the token that ends a text where the
        template closes the turn with it, else with the turn's last character that is no space.

        Raises:
            InputError: The template refuses these messages, or writes a turn in another way once more turns follow.
        """
        whole = self.render(messages)
        parts, done = [], 0
        for place, message in enumerate(messages):
            if message.role != ASSISTANT:
                continue
            prompt = self.render(messages[:place], add_generation_prompt=True)
            turn = self.render(messages[: place + 1])
            if not (whole.startswith(turn.rstrip()) and turn.startswith(prompt) and len(prompt) >= done):
                raise InputError(
                    f"{self.place}: the chat template writes answer {place + 1} in another way once more messages "
                    "follow; give each answer in a conversation of its own."
                )
            end = self._end_of_answer(turn, len(prompt))
            parts += [Part(whole[done : len(prompt)], False), Part(whole[len(prompt) : end], True)]
            done = end
        return tuple(parts)

    def _end_of_answer(self, turn: str, begin: int) -> int:
        eos = self._special.get("eos_token")
        end = turn.rfind(eos, begin) + len(eos) if eos and eos in turn[begin:] else begin
        return end if end > begin and not turn[end:].strip() else max(begin, len(turn.rstrip()))


def load_chat_template(folder: str | Path) -> ChatTemplate:
    """Return the chat template of a model folder.

    That is chat_template.jinja, else `chat_template` in tokenizer_config.json (the one named 'default' where there are
    several), else the rounds of ChatGLM2 for its tokenizer. A model without one was not trained on conversations and
    gets a plain one: `### User:`, the message on lines of its own, an empty line, `### Assistant:`, the answer, and the
    token that ends a text.

    Args:
        folder: The model's folder.

    Raises:
        InputError: A file is damaged, or the template is no Jinja.
    """
    folder = require_folder(folder)
    special = read_special_tokens(folder)
    if (path := folder / "chat_template.jinja").exists():
        return ChatTemplate(read_text(path), special, path)
    path = folder / "tokenizer_config.json"
    named = read_tokenizer_config(folder).get("chat_template")
    if isinstance(named, list):
        by_name = {entry.get("name"): entry.get("template") for entry in named if isinstance(entry, dict)}
        named = by_name.get("default", named)
    if named is not None:
        if not isinstance(named, str):
            raise InputError(f"{path}: 'chat_template' is {named!r:.40}; expected a text: fetch the file again.")
        return ChatTemplate(named, special, path)
    if tokenizer_class(folder) == "ChatGLMTokenizer":
        return ChatTemplate(_CHATGLM2, special, folder, adds_special_tokens=True)
    return ChatTemplate(_PLAIN, special, folder, adds_special_tokens=True)


class _GenerationTag(Extension):
    """Lets a template mark what the assistant writes; the text stays the same."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what templates may use: no Python attribute that leads out, nothing that changes a value."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
