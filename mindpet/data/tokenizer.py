"""WordPiece tokenisation with the ids that transformers gives, from a Hugging Face model folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from mindpet.storage.reader import read_json, read_text, require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["Tokenizer", "load_tokenizer"]

_SPECIAL_TOKENS = {  # BERT's, in the order in which transformers adds them
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_CONFIG_VALUES = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
}


class Tokenizer:
    """Turns texts into token ids, with the special tokens around them.

    Attributes:
        pad_id: The token that fills a row up.
        vocab_size: One more than the largest id; the model's embedding must have at least as many rows.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pad_id: int):
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.pad_id = pad_id
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1

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
        smallest = self._backend.num_special_tokens_to_add(is_pair=False) + 1
        if max_length < smallest:
            raise ValueError(
                f"max_length is {max_length}; expected at least {smallest}, for the special tokens and one more."
            )
        self._backend.enable_truncation(max_length)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._backend.encode_batch_fast(list(texts))]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face model folder, with transformers' ids.

    Reads tokenizer.json, else vocab.txt (WordPiece). For a BERT tokenizer tokenizer_config.json decides in both cases
    on `do_lower_case` (True if not named), `strip_accents` (as do_lower_case) and `tokenize_chinese_chars` (True), even
    where tokenizer.json says something else: transformers reads them so. Truncation and padding stored in
    tokenizer.json are switched off.

    Args:
        folder: The model's folder.

    Raises:
        InputError: There is neither file, a file is damaged, or the vocabulary lacks a special token.
    """
    folder = require_folder(folder)
    config = _read_config(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if path.exists():
        backend = _from_json(path, config)
    elif (path := folder / "vocab.txt").exists():
        backend = _from_vocabulary(path, config)
    else:
        raise InputError(f"{folder} holds neither tokenizer.json nor vocab.txt; name the folder of a downloaded model.")
    return Tokenizer(backend, _special_id(backend, path, _special_token(config, "pad_token")))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} is no JSON object; fetch the file again.")
    for key, accepted in _CONFIG_VALUES.items():
        if key in config and config[key] not in accepted:
            raise InputError(f"{path}: {key!r} is {config[key]!r}; expected {' or '.join(map(str, accepted))}.")
    return config


def _from_json(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # The library raises nothing more precise.
        raise InputError(f"{path} is no tokenizer ({error}); fetch the file again.") from error
    generic = config.get("tokenizer_class") == "PreTrainedTokenizerFast"  # transformers then takes the file as it is.
    if isinstance(backend.normalizer, normalizers.BertNormalizer) and not generic:
        backend.normalizer = _bert_normalizer(config)
    return backend


def _from_vocabulary(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    lines = read_text(path).removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines)}
    special = {role: _special_token(config, role) for role in _SPECIAL_TOKENS}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    cls, sep = special["cls_token"], special["sep_token"]
    ids = {token: _special_id(backend, path, token) for token in special.values()}
    backend.add_special_tokens(list(ids))
    backend.normalizer = _bert_normalizer(config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    return backend


def _bert_normalizer(config: dict[str, Any]) -> normalizers.BertNormalizer:
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )


def _special_token(config: dict[str, Any], role: str) -> str:
    """Return the text of a special token, which the configuration may give as a text or with its options."""
    token = config.get(role) or _SPECIAL_TOKENS[role]
    return str(token.get("content") if isinstance(token, dict) else token)


def _special_id(backend: tokenizers.Tokenizer, path: Path, token: str) -> int:
    number = backend.token_to_id(token)
    if number is None:
        raise InputError(
            f"{path} lacks the special token {token!r}; fetch the file again, or name it in tokenizer_config.json."
        )
    return number
