"""The tokenizer of ChatGLM2: a sentencepiece model, and five tokens that are written in no text."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import sentencepiece

from mindpet.data.tokenizer import Tokenizer, Tokens
from mindpet.storage.reader import read_bytes
from mindpet.utils.exceptions import InputError

__all__ = ["Glm2Tokenizer"]

_ADDED_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")  # their ids follow those of the sentencepiece model
_BEFORE_A_TEXT = ("[gMASK]", "sop")


class Glm2Tokenizer(Tokenizer):
    """Reads a tokenizer.model; each text begins with [gMASK] and sop.

    Unlike with other tokenizers no text reads like a special token: these are added by their ids only.

    Args:
        path: The file.

    Raises:
        InputError: The file cannot be read or is no sentencepiece model.
    """

    def __init__(self, path: Path):
        data = read_bytes(path)
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{path} is no sentencepiece model ({error}); fetch the file again.") from error
        size = self._model.vocab_size()
        self._added = {token: size + place for place, token in enumerate(_ADDED_TOKENS)}
        self._prefix = np.array([self._added[token] for token in _BEFORE_A_TEXT], np.int32)
        self.pad_id = self._model.unk_id()
        self.bos_id = self._model.bos_id()
        self.eos_id = self._model.eos_id()
        self.vocab_size = size + len(_ADDED_TOKENS)

    def tokenize(self, text: str, add_special_tokens: bool = True) -> Tokens:
        """Return the tokens of a text; see `Tokenizer.tokenize`."""
        pieces = self._model.encode(text, out_type="offset_mapping")
        ids, spans = np.array(pieces["ids"], np.int32), np.array(pieces["offsets"], np.int32).reshape(-1, 2)
        for place in reversed(np.flatnonzero(spans[:, 0] == spans[:, 1])):
            # Of a character in several pieces the library gives the place to the last piece only.
            spans[place, 1] = spans[min(place + 1, len(spans) - 1), 1]
        if not add_special_tokens:
            return Tokens(ids, spans)
        nowhere = np.zeros((len(self._prefix), 2), np.int32)
        return Tokens(np.concatenate([self._prefix, ids]), np.concatenate([nowhere, spans]))

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; see `Tokenizer.decode`."""
        names = {number: token for token, number in self._added.items()}
        parts = []
        for is_added, group in groupby((int(number) for number in ids), key=names.__contains__):
            if not is_added:
                parts.append(self._model.decode(list(group)))
            elif not skip_special_tokens:
                parts.extend(names[number] for number in group)
        return "".join(parts)

    def _special_count(self) -> int:
        return len(self._prefix)

    def _encode_cut(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        return [self.tokenize(text).ids[:max_length] for text in texts]
