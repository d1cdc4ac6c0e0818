"""What an opened language model writes behind texts, or answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindpet.data.chat import Message
from mindpet.data.language import encode_prompt
from mindpet.models.generation import Sampling, generate
from mindpet.train.serve import Notify, Served

__all__ = ["Writing", "complete", "write_behind"]


@dataclass(frozen=True)
class Writing:
    """How a language model goes on.

    Attributes:
        raw: Whether texts are continued as they are; otherwise each is a user's message that is answered.
        max_new_tokens: How many tokens follow at most.
        sampling: How each is chosen.
    """

    raw: bool = False
    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)


def complete(
    served: Served, prompts: Sequence[str], writing: Writing, notify: Notify, first: int
) -> list[dict[str, Any]]:
    """Return what the model writes for each text, in the order of the texts.

    Args:
        served: A language model.
        prompts: N texts.
        writing: How it goes on.
        notify: Called with one sentence for each text that is too long.
        first: The number of the first text, for these sentences and for the seed.

    Returns:
        N objects with `prompt` and `completion`; None for the latter where the text is empty or too long.
    """
    answers: list[dict[str, Any]] = [{"prompt": prompt, "completion": None} for prompt in prompts]
    rows: dict[int, np.ndarray] = {}
    for place, prompt in enumerate(prompts):
        if not prompt.strip():
            continue
        ids = _tokens(served, prompt, writing)
        if len(ids) + writing.max_new_tokens > served.room:
            notify(
                f"text {first + place}: its {len(ids)} tokens and {writing.max_new_tokens} new ones are more than the "
                f"{served.room} that the model takes; shorten it or lower --max-new-tokens"
            )
            continue
        rows[place] = ids
    if rows:
        for place, text in zip(rows, write_behind(served, list(rows.values()), writing, first), strict=True):
            answers[place]["completion"] = text
    return answers


def write_behind(served: Served, rows: Sequence[np.ndarray], writing: Writing, first: int = 0) -> list[str]:
    """Return what the model writes behind each row of tokens, up to a token that ends a text.

    Args:
        served: A language model.
        rows: The tokens of each text.
        writing: How it goes on.
        first: Added to the seed, so that batches do not repeat each other's chances.
    """
    size = 1 << (len(rows) - 1).bit_length()  # few sizes, so that graphs serve several batches
    input_ids = np.full((size, max(map(len, rows))), served.tokenizer.pad_id, np.int32)
    attention_mask = np.zeros_like(input_ids)
    for place in range(size):
        tokens = rows[min(place, len(rows) - 1)]
        input_ids[place, -len(tokens) :] = tokens  # padded on the left, so that each goes on at its end
        attention_mask[place, -len(tokens) :] = 1
    ends = _ends(served)
    chosen = writing.sampling
    written = generate(
        served.network,
        input_ids,
        attention_mask,
        writing.max_new_tokens,
        temperature=chosen.temperature,
        top_k=chosen.top_k,
        top_p=chosen.top_p,
        seed=chosen.seed + first,
        eos_token_ids=ends,
    )
    return [served.tokenizer.decode(_before(row, ends)) for row in written[: len(rows)]]


def _tokens(served: Served, prompt: str, writing: Writing) -> np.ndarray:
    if writing.raw or served.template is None:
        return served.tokenizer.tokenize(prompt).ids
    return encode_prompt([Message("user", prompt)], served.tokenizer, served.template)


def _ends(served: Served) -> list[int]:
    """Return the tokens that end a text: the tokenizer's, and the model's own one or several, if it can write them."""
    config = served.network.config
    found = (config.eos_token_id, served.tokenizer.eos_id)
    tokens = {int(token) for one in found if one is not None for token in np.atleast_1d(one)}
    return sorted(token for token in tokens if token < config.vocab_size)


def _before(row: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Return the tokens before the first that ends the text."""
    places = np.flatnonzero(np.isin(row, list(ends)))
    return row[: places[0]] if len(places) else row
