"""What all language models share: positions, masks, a cache of keys and values, the head, and how they are read.

A cache is a tuple `(layers, seen)`. `layers` holds for each attention its keys and values (batch, slots, width) and the
additive mask (batch, 1, 1, slots) over them; `seen` (batch, 1) is the number of tokens of each text so far, from which
positions go on. The number of slots never changes: new keys are appended at the end, and as many empty, hidden slots
fall out in front. So one compiled graph serves every step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.models._layers import HIDDEN, Dense
from mindpet.models._loading import file_name, load_parameters

__all__ = ["CausalLM", "Head", "LayerPast", "Past", "Positions", "append"]

LayerPast = tuple[Tensor, Tensor, Tensor]
Past = tuple[tuple[LayerPast, ...], Tensor]
Net = TypeVar("Net", bound="CausalLM")

_TO_BE_READ = 0.0  # the spread of weights that a file replaces: drawing normal numbers takes seconds


def append(past: LayerPast, key: Tensor, value: Tensor, mask: Tensor) -> LayerPast:
    """Append keys, values and mask of new tokens to those of an attention, and drop as many slots in front."""
    new = key.shape[1]
    keys = ops.concat((past[0][:, new:], key), 1)
    values = ops.concat((past[1][:, new:], value), 1)
    return keys, values, ops.concat((past[2][..., new:], mask), -1)


class Positions(nn.Cell):
    """The position of each token, counted over the visible tokens of its text.

    A prefix shifts the positions of the text: `position_shift` is then a cell that returns by how much, and whose
    `tokens` is the most that it can be.

    Args:
        longest: The number of positions that the model knows.
        reason: Why it is not more, for the message that refuses a longer text.
    """

    def __init__(self, longest: int, reason: str = "") -> None:
        super().__init__()
        self.longest = longest
        self.reason = reason
        self.position_shift: nn.Cell | None = None

    def construct(self, attention_mask: Tensor, seen: Tensor | None) -> Tensor:
        """Return int32 positions (batch, length).

        Args:
            attention_mask: (batch, length) of the tokens, 1 for a token and 0 for padding.
            seen: The number of tokens before them, int32 (batch, 1), or None at the beginning.
        """
        if seen is None:
            self._check(attention_mask.shape[1])
        counted = ops.cumsum(attention_mask.astype(mindspore.int32), 1)
        positions = ops.maximum(counted - 1, 0)
        if seen is not None:
            positions = positions + seen
        return positions if self.position_shift is None else positions + self.position_shift()

    def limit(self) -> int:
        """Return the greatest number of tokens of a text, beside a prefix where there is one."""
        return self.longest if self.position_shift is None else self.longest - self.position_shift.tokens

    def _check(self, length: int) -> None:
        """Refuse more tokens than there are positions."""
        beside = "" if self.position_shift is None else f" beside a prefix of up to {self.position_shift.tokens}"
        if length > self.limit():
            raise ValueError(
                f"The sequence has {length} tokens, but this model takes at most {self.limit()}{beside}{self.reason}: "
                "cut the texts."
            )


class Head(Dense):
    """The dense layer from hidden states to logits, whose weight may be the table of the words' embedding.

    It then takes the rows of tokens that are trained there: a cell that is assigned to `tied_rows` is given the hidden
    states (..., hidden) and the logits (..., vocab_size), and returns the logits with those of the trained tokens.
    """

    def __init__(self, width: int, words: int, spread: float) -> None:
        super().__init__(width, words, spread, has_bias=False)
        self.tied_rows: nn.Cell | None = None

    def construct(self, x: Tensor) -> Tensor:
        """Map (..., hidden) to (..., vocab_size) in the dtype of `x`."""
        logits = kernels.dense(x, self.weight, self.bias)  # `super()` of a graph is the class of the object's twin
        return logits if self.tied_rows is None else self.tied_rows(x, logits)


class CausalLM(nn.Cell):
    """A decoder and the head on it: the base of the language models here.

    A subclass says how it decodes and what it reads, and calls `add_head`.

    Args:
        config: The shape of the network.
        compute_dtype: Dtype of the activations between embeddings and logits.
    """

    config_class: ClassVar[Any]

    def __init__(self, config: Any, compute_dtype: mindspore.Type = mindspore.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype

    def decode(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None
    ) -> tuple[Tensor, tuple[LayerPast, ...]]:
        """Return hidden states (batch, length, hidden) in the compute dtype, and each attention's keys and mask."""
        raise NotImplementedError

    @staticmethod
    def read_tensors(folder: str | Path, config: Any) -> dict[str, np.ndarray]:
        """Return the tensors of a folder by the names of transformers, each in the form that the network holds."""
        raise NotImplementedError

    def construct(
        self, input_ids: Tensor, attention_mask: Tensor, past: Past | None = None, room: int | None = None
    ) -> Any:
        """Predict the next token at each position.

        A token's position is the number of visible tokens before it, so padding on either side changes nothing.

        Args:
            input_ids: Int tensor (batch, length), each below vocab_size.
            attention_mask: (batch, length) of any dtype, 1 for a token and 0 for padding.
            past: What an earlier call has returned; `input_ids` go on from there. In graph mode wrap it into
                `mindspore.mutable`, so that it is no constant.
            room: Start a cache in which so many more tokens have a place; the first ones make way for any beyond.

        Returns:
            Logits (batch, length, vocab_size), float32. With `past` or `room` a tuple: the logits of the last position
            (batch, 1, vocab_size), and the past of the next call.

        Raises:
            ValueError: The sequence is longer than the model takes.
        """
        if room is not None:
            hidden, layers = self.decode(input_ids, attention_mask, None)
            return self.logits(hidden[:, -1:]), (_with_room(layers, room), _count(attention_mask))
        if past is not None:
            hidden, layers = self.decode(input_ids, attention_mask, past)
            return self.logits(hidden[:, -1:]), (layers, past[1] + _count(attention_mask))
        return self.logits(self.features(input_ids, attention_mask))

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what the head sees, (batch, length, hidden) in the compute dtype; arguments as in `construct`."""
        return self.decode(input_ids, attention_mask, None)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., hidden) to logits (..., vocab_size) in float32."""
        return self.lm_head(hidden).astype(mindspore.float32)

    def add_head(self, embedding: nn.Embedding) -> None:
        """Add the head, with the very Parameter of the embedding, under its name there, where the two are tied."""
        width, rows = embedding.embedding_size, embedding.vocab_size
        tied = self.config.tie_word_embeddings
        self.lm_head = Head(width, rows, 0.0 if tied else self.config.initializer_range)
        if tied:
            name = embedding.embedding_table.name
            self.lm_head.weight = embedding.embedding_table
            self.lm_head.weight.name = name

    @classmethod
    def from_pretrained(
        cls: type[Net],
        folder: str | Path,
        dropout: float | None = None,
        compute_dtype: mindspore.Type = mindspore.float32,
    ) -> Net:
        """Read a model folder as Hugging Face or ModelScope lay it out: `config.json`, and safetensors or shards.

        Args:
            folder: The model's folder.
            dropout: Takes the place of every dropout of the configuration; None keeps them, 0.0 trains without.
            compute_dtype: Dtype of the activations: float32, float16 or (Ascend) bfloat16. Parameters are float32
                whatever the files hold; softmax and the statistics of norms compute in float32.

        Raises:
            InputError: A missing or damaged file, another architecture, a feature that is not built here, or weights
                that do not fit; the message names the file. No network is made then.
        """
        config = cls.config_class.from_folder(folder).with_dropout(dropout)
        tensors = cls.read_tensors(folder, config)
        net = cls(replace(config, initializer_range=_TO_BE_READ), compute_dtype)
        net.config = config
        load_parameters({file_name(p.name): p for p in net.get_parameters()}, tensors, folder)
        return net


def _count(attention_mask: Tensor) -> Tensor:
    """Return the number of visible tokens of each text, int32 (batch, 1)."""
    return attention_mask.astype(mindspore.int32).sum(axis=1, keepdims=True)


def _with_room(layers: tuple[LayerPast, ...], room: int) -> tuple[LayerPast, ...]:
    """Put `room` empty, hidden slots in front of the keys, values and mask of each attention."""
    roomy = []
    for key, value, mask in layers:
        empty = ops.zeros((key.shape[0], room, key.shape[2]), key.dtype)
        hidden = ops.full((key.shape[0], 1, 1, room), HIDDEN, dtype=mask.dtype)
        roomy.append((ops.concat((empty, key), 1), ops.concat((empty, value), 1), ops.concat((hidden, mask), -1)))
    return tuple(roomy)
