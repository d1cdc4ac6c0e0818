"""How well an opened network does on data: the figures of `mindpet evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindpet.data.batches import length_buckets
from mindpet.data.dataset import ClassificationData, Split, load_data
from mindpet.data.instructions import load_instructions
from mindpet.data.language import LanguageBatches, encode, encode_prompt
from mindpet.data.language_data import Conversation, LanguageExample
from mindpet.train.answering import logits_of
from mindpet.train.completing import Writing, write_behind
from mindpet.train.evaluate import sum_losses
from mindpet.train.losses import LanguageLoss
from mindpet.train.metrics import accuracy, macro_f1, perplexity, rouge
from mindpet.train.serve import Notify, Served
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["evaluate"]

_NEW_TOKENS = 128  # of an answer, where nothing else is said


def evaluate(
    served: Served, data: Path | None, split: str, notify: Notify, max_new_tokens: int | None = None
) -> dict[str, Any]:
    """Return the figures of a network on a split of data.

    Args:
        served: The network.
        data: What to read; None for the run's own data. Both are divided as for a run, by the run's seed.
        split: 'train', 'valid', 'test', or 'all' of them: for data that the run has never seen.
        notify: Called with one sentence before steps that take a while.
        max_new_tokens: Of a language model's answers, at most; None for 128. A classifier writes nothing.

    Returns:
        `task`, `data`, `split` and the number of `texts`. Of a classifier `accuracy` and `macro_f1`. Of a language
        model the number of `targets` and their `perplexity`; for conversations also `rouge1`, `rouge2` and `rougeL` of
        what it writes in the place of each last answer, always taking the likeliest token. Shares are from 0 to 1.
        Where a prompt leaves no room for so many new tokens it is shortened as in training: `shortened_prompts` counts
        these, and `left_out` those that have no room even so, which get no answer. Without answers there is no ROUGE.

    Raises:
        InputError: The data cannot be read, has a label that the network does not know, or has an example nothing of
            whose answer has room.
    """
    source, seed = data or served.settings.data, served.settings.seed
    if served.is_language:
        texts = load_instructions(source, seed, notify)
        examples = [example for part in _parts(texts, split) for example in part]
        name, count = texts.name, len(examples)
        figures = _score_language(served, examples, max_new_tokens or _NEW_TOKENS, notify)
    else:
        labelled = load_data(source, seed, notify)
        parts = _parts(labelled, split)
        name, count = labelled.name, sum(map(len, parts))
        figures = _score_classifier(served, labelled, parts)
    return {"task": served.settings.task, "data": name, "split": split, "texts": count, **figures}


def _parts(data: Any, split: str) -> list[Any]:
    return [data.train, data.valid, data.test] if split == "all" else [getattr(data, split)]


def _score_classifier(served: Served, data: ClassificationData, parts: Sequence[Split]) -> dict[str, float]:
    texts = [text for part in parts for text in part.texts]
    labels = _numbers(served, data)[np.concatenate([part.labels for part in parts])]
    predicted = logits_of(served, texts).argmax(axis=1)
    return {"accuracy": accuracy(predicted, labels), "macro_f1": macro_f1(predicted, labels)}


def _numbers(served: Served, data: ClassificationData) -> np.ndarray:
    """Return the network's class number for each of the data's."""
    names, classes = served.label_names, served.network.config.num_labels
    if names is None and len(data.label_names) != classes:
        raise InputError(
            f"{served.path} knows {classes} labels without their names, and {data.name} has {len(data.label_names)}; "
            "name the run in place of the adapter, or the data that it was trained with"
        )
    known = names or data.label_names
    for label in data.label_names:
        if label not in known:
            nearest = nearest_names(label, known, count=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(map(repr, known[:8]))}"
            raise InputError(f"{data.name}: the network was not trained for the label {label!r}; {hint}")
    return np.array([known.index(label) for label in data.label_names])


def _score_language(
    served: Served, examples: Sequence[LanguageExample], max_new_tokens: int, notify: Notify
) -> dict[str, Any]:
    """Return the perplexity of what is to be learnt, and ROUGE of the last answers where there are any."""
    size, tokenizer = served.settings.batch_size, served.tokenizer
    assert served.template is not None
    sequences = encode(examples, tokenizer, served.template, served.longest)
    widths = length_buckets(sequences.lengths, served.longest, size)
    notify(f"perplexity of {len(examples)} texts")
    loss, targets = sum_losses(LanguageLoss(served.network), LanguageBatches(sequences, size, widths, tokenizer.pad_id))
    figures = {"targets": targets, "perplexity": perplexity(loss, targets)}
    talks = [example for example in examples if isinstance(example, Conversation)]
    return figures | (_score_answers(served, talks, max_new_tokens, notify) if talks else {})


def _score_answers(
    served: Served, talks: Sequence[Conversation], max_new_tokens: int, notify: Notify
) -> dict[str, float]:
    """Return ROUGE of what the model writes in the place of each last answer, and how many prompts had no room."""
    prompts, shortened = _encode_prompts(served, talks, served.room - max_new_tokens)
    left_out = len(talks) - len(prompts)
    for count, fate in ((shortened, "shortened as in training"), (left_out, "left out of ROUGE")):
        if count:
            notify(
                f"{count} of {len(talks)} prompts {fate}: of the {served.room} tokens that the model takes, "
                f"{max_new_tokens} are for the answer; a lower --max-new-tokens leaves more to the prompts"
            )
    scores: dict[str, float] = {"shortened_prompts": shortened, "left_out": left_out}
    if prompts:
        written = _write(served, list(prompts.values()), max_new_tokens, notify)
        scores |= rouge(written, [talks[place].messages[-1].content for place in prompts])
    return scores


def _encode_prompts(served: Served, talks: Sequence[Conversation], most: int) -> tuple[dict[int, np.ndarray], int]:
    """Return the tokens before each last answer, by its place, where they have room; and how many were shortened."""
    assert served.template is not None
    prompts, shortened = {}, 0
    for place, talk in enumerate(talks):
        tokens = encode_prompt(talk.messages[:-1], served.tokenizer, served.template)
        if len(tokens) > most:
            tokens = encode_prompt(talk.messages[:-1], served.tokenizer, served.template, most)
            shortened += len(tokens) <= most
        if len(tokens) <= most:
            prompts[place] = tokens
    return prompts, shortened


def _write(served: Served, prompts: Sequence[np.ndarray], max_new_tokens: int, notify: Notify) -> list[str]:
    """Return what the model writes behind each prompt; those of similar length share a batch."""
    written: dict[int, str] = {}
    size, order = served.settings.batch_size, sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for begin in range(0, len(order), size):
        places = order[begin : begin + size]
        notify(f"answers {begin + 1} to {begin + len(places)} of {len(order)}")
        rows = [prompts[place] for place in places]
        written |= dict(zip(places, write_behind(served, rows, Writing(max_new_tokens=max_new_tokens)), strict=True))
    return [written[place] for place in range(len(prompts))]
