"""Let a language model continue texts, token by token, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from mindspore import Tensor, mutable

from mindpet.models._causal import CausalLM, Positions
from mindpet.utils.exceptions import InputError

__all__ = ["Sampling", "generate"]

# Lengths are rounded up to multiples, so that graphs that are compiled already serve other lengths too.
_PROMPT_STEP = 32
_SLOTS_STEP = 64
_COLDEST = 1e-6  # logits divided by less might leave float64


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in the order of transformers: temperature, top-k, top-p.

    Args:
        temperature: Divides the logits before their softmax, from 1e-6; 0.0 takes the likeliest token, without chance.
        top_k: So many of the likeliest tokens stay, and those as likely as the last of them; None for all.
        top_p: Of these the likeliest stay, as few as have this probability together (arXiv:1904.09751); None for all.
        seed: Of the random numbers, one of which each text takes for each token.

    Raises:
        InputError: A value of the wrong type or out of range, or a choice without chance that is given top_k or top_p.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        temperature, top_k, top_p, seed = self.temperature, self.top_k, self.top_p, self.seed
        is_warm = _is_number(temperature) and (temperature == 0 or _COLDEST <= temperature < np.inf)
        is_share = top_p is None or (_is_number(top_p) and 0 < top_p <= 1)
        rules = {
            "temperature": (is_warm, f"0, which takes the likeliest token, or a finite number from {_COLDEST:g}"),
            "top_k": (top_k is None or (_is_whole(top_k) and top_k >= 1), "None or an integer from 1"),
            "top_p": (is_share, "None or a number above 0 and up to 1"),
            "seed": (_is_whole(seed) and seed >= 0, "an integer from 0"),
        }
        for name, (is_valid, expected) in rules.items():
            if not is_valid:
                raise InputError(f"{name} is {getattr(self, name)!r}; expected is {expected}: correct the value.")
        if self.temperature == 0 and (self.top_k, self.top_p) != (None, None):
            raise InputError("top_k and top_p choose by chance, but temperature is 0: give a temperature, such as 1.0.")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Map logits (batch, vocab_size) to the probabilities from which a token is drawn, float64."""
        scores = logits.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = np.partition(scores, -self.top_k)[:, -self.top_k, None]
            scores = np.where(scores < least, -np.inf, scores)
        probabilities = np.exp(scores - scores.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        if self.top_p is None or self.top_p == 1:
            return probabilities
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, -1)
        before = ordered.cumsum(-1) - ordered  # the probability of all likelier tokens
        kept = np.where(before < self.top_p, ordered, 0.0)
        np.put_along_axis(probabilities, order, kept, -1)
        return probabilities / probabilities.sum(-1, keepdims=True)

    def choose(self, logits: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Choose a token of each row of (batch, vocab_size), int32 (batch,)."""
        if self.temperature == 0:
            return logits.argmax(-1).astype(np.int32)
        summed = self.probabilities(logits).cumsum(-1)
        drawn = random.random(len(logits))[:, None] * summed[:, -1:]
        return (summed <= drawn).sum(-1).astype(np.int32)


def generate(
    net: CausalLM,
    input_ids: Any,
    attention_mask: Any,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_token_ids: int | Iterable[int] | None = (),
) -> np.ndarray:
    """Continue each text of a batch.

    Works with adapters of every kind attached, merged or not. In graph mode two graphs are compiled, one for the prompt
    and one for a single token, and serve later calls with similar lengths.

    Args:
        net: The language model.
        input_ids: Integers (batch, length), padded on the left.
        attention_mask: (batch, length), 1 for a token and 0 for padding.
        max_new_tokens: How many tokens follow at most.
        temperature: As in Sampling; 0.0 always takes the likeliest token.
        top_k: As in Sampling.
        top_p: As in Sampling.
        seed: As in Sampling.
        eos_token_ids: The token, or tokens, at which a text ends, such as `net.config.eos_token_id`; None for no end.

    Returns:
        The new tokens, int32 (batch, at most max_new_tokens). A text that has ended is filled up with the first of
        `eos_token_ids`.

    Raises:
        InputError: Arguments of the wrong type, out of range, or that do not fit each other or the model; the message
            names them.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    ends = _ends(eos_token_ids, net.config.vocab_size)
    ids, mask = _checked(net, np.asarray(input_ids), np.asarray(attention_mask), max_new_tokens)
    training = net.training
    net.set_train(False)
    try:
        return _continue(net, ids, mask, max_new_tokens, sampling, ends)
    finally:
        net.set_train(training)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _ends(given: Any, vocabulary: int) -> np.ndarray:
    """Return the tokens at which a text ends, int32 (tokens,)."""
    tokens = [] if given is None else list(given) if np.iterable(given) else [given]
    if not all(_is_whole(token) and 0 <= token < vocabulary for token in tokens):
        raise InputError(
            f"eos_token_ids is {given!r}; expected is None, or one or several of the model's tokens, the integers 0 to "
            f"{vocabulary - 1}: give the tokens that end a text, or None."
        )
    return np.array(tokens, np.int32)


def _continue(
    net: CausalLM, ids: np.ndarray, mask: np.ndarray, count: int, sampling: Sampling, ends: np.ndarray
) -> np.ndarray:
    """Run the prompt, then a token at a time."""
    random = np.random.default_rng(sampling.seed)
    room = -(-(ids.shape[1] + count) // _SLOTS_STEP) * _SLOTS_STEP - ids.shape[1]
    logits, past = net(Tensor(ids), Tensor(mask), room=room)
    visible = Tensor(np.ones((len(ids), 1), np.int32))
    ended = np.zeros(len(ids), bool)
    chosen = []
    while True:
        tokens = sampling.choose(logits.asnumpy()[:, -1], random)
        if ended.any():
            tokens = np.where(ended, ends[0], tokens)
        chosen.append(tokens)
        ended |= np.isin(tokens, ends)
        if ended.all() or len(chosen) == count:
            return np.stack(chosen, 1)
        logits, past = net(Tensor(tokens[:, None]), visible, mutable(past))


def _checked(net: CausalLM, ids: np.ndarray, mask: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts and their mask as int32, with a common length that a graph may have been compiled for."""
    if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
        raise InputError(
            f"input_ids are {ids.dtype} of the shape {ids.shape}; expected are integers (batch, length): reshape them."
        )
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask has the shape {mask.shape}; expected is {ids.shape}, as input_ids have.")
    if type(count) is not int or count < 1:
        raise InputError(f"max_new_tokens is {count!r}; expected is a positive integer: correct the value.")
    vocabulary = net.config.vocab_size
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError(
            f"input_ids go from {ids.min()} to {ids.max()}, but the model knows the tokens 0 to {vocabulary - 1}: use "
            "the tokenizer of its folder."
        )
    visible = mask != 0
    if not visible[:, -1].all():
        raise InputError("attention_mask hides the last token of a text; pad on the left, so that each text goes on.")
    positions = next(cell for _, cell in net.cells_and_names() if isinstance(cell, Positions))
    longest = positions.limit()
    tokens = int(visible.sum(1).max())
    if tokens + count - 1 > longest:
        raise InputError(
            f"The longest text has {tokens} tokens and may get {count} more, but this model takes at most {longest}"
            f"{positions.reason}: shorten the text or lower max_new_tokens."
        )
    first = int(visible.any(0).argmax())  # what comes before is padding in every text
    length = ids.shape[1] - first
    padding = max(min(-(-length // _PROMPT_STEP) * _PROMPT_STEP, longest) - length, 0)
    both = (np.pad(array[:, first:], ((0, 0), (padding, 0))) for array in (ids, visible))
    padded, shown = (array.astype(np.int32) for array in both)
    return padded, shown
