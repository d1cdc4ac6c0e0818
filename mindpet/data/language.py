"""Passages and conversations as token ids with the targets of a language model, and batches of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mindpet.data.batches import RowBatches
from mindpet.data.chat import ASSISTANT, ChatTemplate, Message, Part
from mindpet.data.language_data import Conversation, LanguageExample, Passage
from mindpet.data.tokenizer import Tokenizer
from mindpet.utils.exceptions import InputError

__all__ = ["NO_TARGET", "LanguageBatch", "LanguageBatches", "TokenSequences", "encode", "encode_prompt"]

NO_TARGET = -1


@dataclass(frozen=True)
class TokenSequences:
    """N encoded examples.

    Attributes:
        input_ids: The tokens of each, (length,) int32.
        labels: What the model has to say at each place, (length,) int32: the token that comes next, or -1 where nothing
            is to be learnt. They are shifted already: `labels[i]` belongs to the logits at place i.
        shortened_prompts: How many conversations had a prompt that was too long, and lost the end of it.
        shortened_targets: How many examples lost the end of what is to be learnt.
    """

    input_ids: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    shortened_prompts: int = 0
    shortened_targets: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each."""
        return [len(ids) for ids in self.input_ids]

    @property
    def target_count(self) -> int:
        """How many tokens are to be learnt, over all examples."""
        return sum(int(np.sum(labels != NO_TARGET)) for labels in self.labels)


class _Encoded(NamedTuple):
    ids: np.ndarray  # (length,)
    is_target: np.ndarray  # (length,) bool


def encode(
    examples: Sequence[LanguageExample],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    max_length: int | None = None,
    cut_passages: bool = True,
) -> TokenSequences:
    """Return the tokens and targets of `examples`.

    A text is tokenised whole, so that its tokens are those that the model meets in generation; a token that holds any
    character of an answer is a target. Of a conversation these are the assistant's turns with the token that ends them,
    of a passage everything. The token that ends a text is put behind each example that does not end with it. The first
    token is never a target: nothing comes before it.

    Where an example is too long, a conversation loses the end of its longest message that is not the assistant's: the
    beginning of the question, the answer and all between them stay. A passage, or a conversation with too long an
    answer, loses its end.

    Args:
        examples: A split of a `LanguageData`.
        tokenizer: Of the model.
        template: Of the model.
        max_length: The largest number of tokens; None takes examples as they are.
        cut_passages: Whether a passage may not be longer either; `mindpet.data.packing.pack` cuts it without a loss.

    Raises:
        InputError: The template refuses a conversation, or nothing that is to be learnt has room in `max_length` (file
            and line are named).
    """
    input_ids, labels, prompts, targets = [], [], 0, 0
    for example in examples:
        encoded = _encode_example(example, tokenizer, template)
        may_be_cut = cut_passages or isinstance(example, Conversation)
        if max_length is not None and may_be_cut and len(encoded.ids) > max_length:
            shorter = _shorten_prompt(example, tokenizer, template, max_length)
            prompts += shorter != example
            encoded = _encode_example(shorter, tokenizer, template)
            targets += len(encoded.ids) > max_length
            encoded = _Encoded(encoded.ids[:max_length], encoded.is_target[:max_length])
        _require_target(encoded, example, max_length)
        input_ids.append(encoded.ids)
        labels.append(_next_tokens(encoded))
    return TokenSequences(tuple(input_ids), tuple(labels), prompts, targets)


def encode_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate, max_length: int | None = None
) -> np.ndarray:
    """Return the tokens after which the assistant's answer to `messages` begins, (length,) int32.

    Args:
        messages: The turns before the answer.
        tokenizer: Of the model.
        template: Of the model.
        max_length: Where there are more tokens, messages lose their ends as in `encode`, until there are no more or
            nothing is left to lose. None takes them as they are.

    Raises:
        InputError: The template refuses these messages.
    """

    def tokens(turns: Sequence[Message]) -> np.ndarray:
        text = template.render(turns, add_generation_prompt=True)
        return tokenizer.tokenize(text, template.adds_special_tokens).ids

    if max_length is None:
        return tokens(messages)
    return tokens(_shorten_messages(messages, tokenizer, lambda turns: len(tokens(turns)) - max_length))


def _encode_example(example: LanguageExample, tokenizer: Tokenizer, template: ChatTemplate) -> _Encoded:
    if isinstance(example, Passage):
        return _encode_parts([Part(example.text, True)], tokenizer, add_special_tokens=True)
    try:
        parts = template.split(example.messages)
    except InputError as error:
        raise InputError(f"{example.place}: {error}") from error
    return _encode_parts(parts, tokenizer, template.adds_special_tokens)


def _encode_parts(parts: Sequence[Part], tokenizer: Tokenizer, add_special_tokens: bool) -> _Encoded:
    tokens = tokenizer.tokenize("".join(part.text for part in parts), add_special_tokens)
    ends = np.cumsum([len(part.text) for part in parts])
    begins, ends_of_tokens = tokens.spans.T
    # A token that begins with spaces may have its place behind them: it begins where the one before it has ended.
    begins = np.minimum(begins, np.concatenate([[0], np.maximum.accumulate(ends_of_tokens)[:-1]]))
    is_target = np.zeros(len(tokens.ids), bool)
    for part, end in zip(parts, ends, strict=True):
        if part.is_target:
            is_target |= (begins < end) & (ends_of_tokens > end - len(part.text))
    if tokenizer.eos_id is None:
        return _Encoded(tokens.ids, is_target)
    if len(tokens.ids) and tokens.ids[-1] == tokenizer.eos_id:
        is_target[-1] = True  # Where the tokenizer has added it, it has no place in the text.
        return _Encoded(tokens.ids, is_target)
    return _Encoded(np.append(tokens.ids, np.int32(tokenizer.eos_id)), np.append(is_target, True))


def _require_target(encoded: _Encoded, example: LanguageExample, max_length: int | None) -> None:
    if encoded.is_target[1:].any():
        return
    if max_length is None:
        raise InputError(f"{example.place}: there is nothing to learn in one token; give a longer text.")
    raise InputError(f"{example.place}: none of the answer has room in {max_length} tokens; allow more, or shorten it.")


def _next_tokens(encoded: _Encoded) -> np.ndarray:
    """Return the labels of an example: at each place the token that follows, where it is a target."""
    labels = np.full(len(encoded.ids), NO_TARGET, np.int32)
    labels[:-1] = np.where(encoded.is_target[1:], encoded.ids[1:], NO_TARGET)
    return labels


def _shorten_prompt(
    example: LanguageExample, tokenizer: Tokenizer, template: ChatTemplate, max_length: int
) -> LanguageExample:
    """Return an example whose prompts, if it has any, have lost as much as is too much, or as much as they can."""
    if isinstance(example, Passage):
        return example

    def excess(messages: Sequence[Message]) -> int:
        shorter = replace(example, messages=tuple(messages))
        return len(_encode_example(shorter, tokenizer, template).ids) - max_length

    return replace(example, messages=_shorten_messages(example.messages, tokenizer, excess))


def _shorten_messages(
    messages: Sequence[Message], tokenizer: Tokenizer, excess: Callable[[Sequence[Message]], int]
) -> tuple[Message, ...]:
    """Return a conversation whose longest messages have lost their ends, until `excess` counts no token too many.

    The assistant's messages stay, and one character of each other one.
    """
    shorter = list(messages)
    while (surplus := excess(shorter)) > 0:
        own = [place for place, message in enumerate(shorter) if message.role != ASSISTANT]
        tokens = {place: tokenizer.tokenize(shorter[place].content, add_special_tokens=False) for place in own}
        longest = max(own, key=lambda place: len(tokens[place].ids))
        content, spans = shorter[longest].content, tokens[longest].spans
        if len(content) < 2:
            break
        # Where a character has several tokens, the last one kept may end with the text: a character goes in any case.
        end = max(1, min(int(spans[max(0, len(spans) - surplus - 1), 1]), len(content) - 1))
        shorter[longest] = shorter[longest]._replace(content=content[:end])
    return tuple(shorter)


class LanguageBatch(NamedTuple):
    """What one step sees: B rows of L tokens.

    A filler row completes a batch; it repeats another row, has no target, and has index -1.

    Attributes:
        input_ids: (B, L) int32.
        attention_mask: (B, L) int32, 1 for a token and 0 for padding, which stands behind the tokens.
        labels: (B, L) int32, the token that comes next, or -1 where there is no target; see `TokenSequences`.
        indices: (B,) int64, each row's place in the input, -1 for a filler.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


class LanguageBatches(RowBatches[LanguageBatch]):
    """Encoded examples as batches of exactly `batch_size` rows and one of a few widths; none is ever dropped.

    Orders and widths are those of `mindpet.data.batches.Batches`.

    Args:
        sequences: The examples, none longer than the last width; or rows of several, see `mindpet.data.packing.pack`.
        batch_size: Rows of a batch.
        widths: Ascending; an example goes to the first that takes it (see `mindpet.data.batches.length_buckets`).
        pad_id: The token that fills a row up.
        seed: Not negative.

    Raises:
        ValueError: There are no examples, or one is longer than the last width.
    """

    def __init__(
        self, sequences: TokenSequences, batch_size: int, widths: Sequence[int], pad_id: int, seed: int = 0
    ) -> None:
        super().__init__(sequences.input_ids, batch_size, widths, pad_id, seed)
        self._labels = sequences.labels

    def _make(self, width: int, rows: np.ndarray) -> LanguageBatch:
        input_ids, attention_mask, indices = self._fill(width, rows)
        labels = np.full_like(input_ids, NO_TARGET)
        for place, row in enumerate(rows):
            labels[place, : len(self._labels[row])] = self._labels[row]
        return LanguageBatch(input_ids, attention_mask, labels, indices)
