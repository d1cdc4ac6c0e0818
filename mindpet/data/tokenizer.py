"""Texts to token ids and back, with the ids that transformers gives, from a Hugging Face model folder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from mindpet.data.bert_tokenizer import bert_normalizer, bert_vocabulary, is_bert
from mindpet.data.special_tokens import (
    BERT_TOKENS,
    read_special_tokens,
    read_tokenizer_config,
    special_id,
    tokenizer_class,
)
from mindpet.storage.reader import read_json, read_text, require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["FastTokenizer", "Tokenizer", "Tokens", "load_tokenizer"]

_GPT2_END = "<|endoftext|>"


class Tokens(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids: (length,) int32.
        spans: (length, 2) int32, the first character of each token and the one after its last. Tokens of one character
            share its place; a special token that stands for no text has an empty place.
    """

    ids: np.ndarray
    spans: np.ndarray


class Tokenizer(ABC):
    """Turns texts into token ids and back.

    Attributes:
        pad_id: The token that fills a row up; nobody attends to it.
        bos_id: The token that begins a text, or None.
        eos_id: The token that ends a text, or None; generation stops at it.
        vocab_size: One more than the largest id; the model's embedding must have at least as many rows.
    """

    pad_id: int
    bos_id: int | None
    eos_id: int | None
    vocab_size: int

    def encode(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Return the ids of each text, special tokens included, cut to `max_length` so that these stay.

        Args:
            texts: N texts.
            max_length: The largest number of tokens, room for the special tokens and one more at least.

        Returns:
            N arrays (length,), int32.

        Raises:
            ValueError: `max_length` is too small.
        """
        smallest = self._special_count() + 1
        if max_length < smallest:
            raise ValueError(
                f"max_length is {max_length}; expected at least {smallest}, for the special tokens and one more."
            )
        return self._encode_cut(texts, max_length)

    @abstractmethod
    def tokenize(self, text: str, add_special_tokens: bool = True) -> Tokens:
        """Return the tokens of a text and their places in it.

        Args:
            text: The text. What reads like a special token in it is one, as in transformers.
            add_special_tokens: Whether those are added that the model expects around a text.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, spaces as they are: no clean-up as transformers does on demand."""

    @abstractmethod
    def _special_count(self) -> int:
        """Return how many special tokens are added to a text."""

    @abstractmethod
    def _encode_cut(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Return the ids of each text cut to a length that has room for the special tokens."""


class FastTokenizer(Tokenizer):
    """A tokenizer of the library `tokenizers`.

    Args:
        backend: Its truncation and padding are switched off.
        special: The text of each special token by its role; of those, that the vocabulary lacks, there is none.
        pad_id: None takes the token that ends a text, as language models mostly have no other.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: dict[str, str], pad_id: int | None = None):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.bos_id = backend.token_to_id(special.get("bos_token", ""))
        self.eos_id = backend.token_to_id(special.get("eos_token", ""))
        self.pad_id = (self.eos_id or 0) if pad_id is None else pad_id
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

    def tokenize(self, text: str, add_special_tokens: bool = True) -> Tokens:
        """Return the tokens of a text; see `Tokenizer.tokenize`."""
        self._backend.no_truncation()
        encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return Tokens(np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2))

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; see `Tokenizer.decode`."""
        return str(self._backend.decode([int(number) for number in ids], skip_special_tokens=skip_special_tokens))

    def _special_count(self) -> int:
        return int(self._backend.num_special_tokens_to_add(is_pair=False))

    def _encode_cut(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        self._backend.enable_truncation(max_length)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._backend.encode_batch_fast(list(texts))]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer of a model folder, with transformers' ids.

    Reads the first of these files that is there: tokenizer.json (of any kind), vocab.txt (WordPiece), vocab.json with
    merges.txt (the byte-level BPE of GPT-2), and the tokenizer.model of ChatGLM2 (sentencepiece). Special tokens are
    those of tokenizer_config.json, special_tokens_map.json, or the tokenizer's class. Truncation and padding stored in
    tokenizer.json are switched off.

    For a BERT tokenizer tokenizer_config.json decides on `do_lower_case` (True if not named), `strip_accents` (as
    do_lower_case) and `tokenize_chinese_chars` (True), and for a Llama tokenizer on `add_bos_token` (True) and
    `add_eos_token` (False), even where tokenizer.json says something else: transformers reads them so.

    Args:
        folder: The model's folder.

    Raises:
        InputError: There is none of these files, a file is damaged, or the vocabulary lacks a special token.
    """
    folder = require_folder(folder)
    config, special, kind = read_tokenizer_config(folder), read_special_tokens(folder), tokenizer_class(folder)
    if (path := folder / "tokenizer.json").exists():
        backend = _from_json(path, config, special, kind)
    elif (path := folder / "vocab.txt").exists():
        backend = bert_vocabulary(path, config, special)
    elif (path := folder / "vocab.json").exists():
        backend = _gpt2_vocabulary(path, kind)
    elif (path := folder / "tokenizer.model").exists():
        return _from_sentencepiece(path, kind)
    else:
        raise InputError(
            f"{folder} holds neither tokenizer.json nor vocab.txt, nor vocab.json or tokenizer.model; name the folder "
            "of a downloaded model."
        )
    if isinstance(backend.model, models.WordPiece):
        special = BERT_TOKENS | special
    pad = special_id(backend, path, special["pad_token"]) if "pad_token" in special else None
    return FastTokenizer(backend, special, pad)


def _from_json(path: Path, config: dict[str, Any], special: dict[str, str], kind: str | None) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises nothing more precise.
        raise InputError(f"{path} is no tokenizer ({error}); fetch the file again.") from error
    if is_bert(backend) and kind != "PreTrainedTokenizer":  # transformers then takes the file as it is.
        backend.normalizer = bert_normalizer(path.with_name("tokenizer_config.json"), config)
    if kind == "LlamaTokenizer":
        backend.post_processor = _llama_ends(backend, path, config, special)
    if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = bool(config.get("add_prefix_space", False))
    return backend


def _llama_ends(
    backend: tokenizers.Tokenizer, path: Path, config: dict[str, Any], special: dict[str, str]
) -> processors.TemplateProcessing:
    """Return what puts the tokens around a text that the configuration asks for."""
    begin = [special["bos_token"]] if config.get("add_bos_token", True) and "bos_token" in special else []
    end = [special["eos_token"]] if config.get("add_eos_token", False) and "eos_token" in special else []
    return processors.TemplateProcessing(
        single=[*begin, "$A", *end],
        special_tokens=[(token, special_id(backend, path, token)) for token in (*begin, *end)],
    )


def _gpt2_vocabulary(path: Path, kind: str | None) -> tokenizers.Tokenizer:
    """Return the byte-level BPE of vocab.json and merges.txt; other models than GPT-2 split texts in other ways."""
    if kind not in (None, "GPT2Tokenizer"):
        raise InputError(
            f"{path} belongs to a {kind}, of which tokenizer.json is needed; fetch that file too, or save the "
            "tokenizer by transformers' `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
        )
    vocabulary, merges_path = read_json(path), path.with_name("merges.txt")
    lines = read_text(merges_path).split("\n")
    pairs = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in pairs]))
    except Exception as error:  # The library raises nothing more precise.
        raise InputError(f"{path} and {merges_path.name} are no BPE ({error}); fetch both again.") from error
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.add_special_tokens([token for token in [_GPT2_END] if token in vocabulary])
    return backend


def _from_sentencepiece(path: Path, kind: str | None) -> Tokenizer:
    if kind != "ChatGLMTokenizer":
        raise InputError(
            f"{path} belongs to a {kind or 'tokenizer of no known class'}, and only ChatGLM2's is read; save "
            "tokenizer.json by transformers' `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`."
        )
    from mindpet.data.glm_tokenizer import Glm2Tokenizer

    return Glm2Tokenizer(path)
