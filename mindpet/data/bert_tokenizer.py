"""BERT's WordPiece: the vocabulary's file, and the options that tokenizer_config.json sets."""

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mindpet.data.special_tokens import BERT_TOKENS, special_id
from mindpet.storage.reader import read_text
from mindpet.utils.exceptions import InputError

__all__ = ["bert_normalizer", "bert_vocabulary", "is_bert"]

_OPTIONS = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
}


def is_bert(backend: tokenizers.Tokenizer) -> bool:
    """Tell whether a tokenizer prepares texts as BERT does."""
    return isinstance(backend.normalizer, normalizers.BertNormalizer)


def bert_vocabulary(path: Path, config: dict[str, Any], special: dict[str, str]) -> tokenizers.Tokenizer:
    """Return the tokenizer of a vocab.txt.

    Args:
        path: One token a line.
        config: What tokenizer_config.json says.
        special: The special tokens by their roles; BERT's own where a role is missing.

    Raises:
        InputError: The file cannot be read, lacks a special token, or an option has an unknown value.
    """
    lines = read_text(path).removesuffix("\n").split("\n")
    vocabulary = {token: number for number, token in enumerate(lines)}
    tokens = [special.get(role, token) for role, token in BERT_TOKENS.items()]
    unknown, sep, _, cls, _ = tokens
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    ids = {token: special_id(backend, path, token) for token in tokens}
    backend.add_special_tokens(list(ids))
    backend.normalizer = bert_normalizer(path.with_name("tokenizer_config.json"), config)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", special_tokens=[(cls, ids[cls]), (sep, ids[sep])]
    )
    backend.decoder = decoders.WordPiece()
    return backend


def bert_normalizer(path: Path, config: dict[str, Any]) -> normalizers.BertNormalizer:
    """Return what prepares a text as the configuration says that was read from `path`.

    Raises:
        InputError: An option has an unknown value.
    """
    for key, accepted in _OPTIONS.items():
        if key in config and config[key] not in accepted:
            raise InputError(f"{path}: {key!r} is {config[key]!r}; expected {' or '.join(map(str, accepted))}.")
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
