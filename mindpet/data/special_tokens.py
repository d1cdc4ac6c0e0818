"""The special tokens of a model folder by their roles, as transformers knows them."""

from pathlib import Path
from typing import Any

import tokenizers

from mindpet.storage.reader import read_json
from mindpet.utils.exceptions import InputError

__all__ = ["BERT_TOKENS", "read_special_tokens", "read_tokenizer_config", "special_id", "tokenizer_class"]

BERT_TOKENS = {  # in the order in which transformers adds them
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_END = "<|endoftext|>"
_OF_CLASS = {  # what transformers takes where the folder names none
    "BertTokenizer": BERT_TOKENS,
    "GPT2Tokenizer": {"bos_token": _END, "eos_token": _END, "unk_token": _END},
    "Qwen2Tokenizer": {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "ChatGLMTokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
}
_CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "llama": "LlamaTokenizer",
    "chatglm": "ChatGLMTokenizer",
}


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Return what tokenizer_config.json says; nothing where there is no such file.

    Raises:
        InputError: The file is no JSON object.
    """
    return _read_object(folder / "tokenizer_config.json")


def tokenizer_class(folder: Path) -> str | None:
    """Return the class of the folder's tokenizer without 'Fast', by tokenizer_config.json, else by the model's type."""
    name = read_tokenizer_config(folder).get("tokenizer_class")
    if isinstance(name, str):
        return name.removesuffix("Fast")
    return _CLASS_OF_MODEL.get(str(_read_object(folder / "config.json").get("model_type")))


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Return the text of each special token by its role: 'eos_token' and so on.

    tokenizer_config.json decides, then special_tokens_map.json, then what the tokenizer's class has by default. A role
    that is null in a file is left out.

    Raises:
        InputError: A file is no JSON object, or gives a token as something else than a text.
    """
    tokens: dict[str, str] = dict(_OF_CLASS.get(str(tokenizer_class(folder)), {}))
    for path in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        named = {role: value for role, value in _read_object(path).items() if role in _ROLES}
        for role, value in named.items():
            tokens.pop(role, None)
            if value is not None:
                tokens[role] = _text_of(path, role, value)
    return tokens


def special_id(backend: tokenizers.Tokenizer, path: Path, token: str) -> int:
    """Return the id of a special token that must be there.

    Raises:
        InputError: The vocabulary lacks it; its file is named.
    """
    number = backend.token_to_id(token)
    if number is None:
        raise InputError(
            f"{path} lacks the special token {token!r}; fetch the file again, or name it in tokenizer_config.json."
        )
    return int(number)


def _text_of(path: Path, role: str, value: Any) -> str:
    """Return the text of a token, which a file may give as a text or with its options."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise InputError(f"{path}: {role!r} is {value!r:.60}; expected the text of a token: fetch the file again.")
    return content


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is no JSON object; fetch the file again.")
    return value
