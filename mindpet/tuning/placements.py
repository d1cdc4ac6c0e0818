"""Where each method goes in the architectures that are known, when a configuration does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mindpet.utils.exceptions import InputError

__all__ = ["Placement", "placement_of"]


@dataclass(frozen=True)
class Placement:
    """The usual places of the methods in one architecture; an entry is written as in `target_modules`.

    Attributes:
        architecture: Its name, as in `model_type` of a Hugging Face folder.
        sign: A regular expression that the end of a path matches in this architecture only.
        lora: For LoRA: query and value.
        adapter: For adapters, low-rank ones too: the attention's output projection and the second feed-forward layer.
        ia3: For IA3: key, value and the feed-forward layers.
        feedforward: Those of them whose input IA3 scales.
        words: The embedding of the words.
    """

    architecture: str
    sign: str
    lora: tuple[str, ...]
    adapter: tuple[str, ...]
    ia3: tuple[str, ...]
    feedforward: tuple[str, ...]
    words: tuple[str, ...]


_PLACEMENTS = (
    Placement(
        "bert",
        r"\blayer\.\d+\.attention\.self\.query",
        lora=("attention.self.query", "attention.self.value"),
        adapter=("output.dense",),  # the end of two paths in each layer, `attention.output.dense` is the other
        ia3=("attention.self.key", "attention.self.value", "output.dense"),
        feedforward=("output.dense",),  # both, as in PEFT
        words=("embeddings.word_embeddings",),
    ),
)


def placement_of(paths: Iterable[str]) -> Placement:
    """Return the placement of the architecture that has these paths.

    Raises:
        InputError: The architecture is not known.
    """
    paths = list(paths)
    for placement in _PLACEMENTS:
        if any(re.search(placement.sign + "$", path) for path in paths):
            return placement
    known = ", ".join(placement.architecture for placement in _PLACEMENTS)
    names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths})[:12])
    raise InputError(
        f"target_modules is not given, and the network is of no architecture with a default placement ({known}); give "
        f"'all-linear' or some names of its dense layers ({names or 'it has none'})"
    )
