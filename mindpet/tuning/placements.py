"""Where each method goes in the architectures that are known, when a configuration does not say."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mindpet.tuning.layers import Network
from mindpet.utils.exceptions import InputError

__all__ = ["Placement", "placement_of"]


@dataclass(frozen=True)
class Placement:
    """The usual places of the methods in one architecture; an entry is written as in `target_modules`.

    Attributes:
        architecture: Its name, as in `model_type` of a Hugging Face folder.
        sign: A regular expression that the end of a path matches in this architecture.
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


# Where PEFT has places of its own for LoRA and IA3, these are the same. Of those whose signs match, the network's own
# `config.model_type` chooses, else the first counts.
_LLAMA = Placement(
    "llama",
    r"\blayers\.\d+\.self_attn\.q_proj",
    lora=("self_attn.q_proj", "self_attn.v_proj"),
    adapter=("self_attn.o_proj", "mlp.down_proj"),
    ia3=("self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"),
    feedforward=("mlp.down_proj",),
    words=("embed_tokens",),
)
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
    Placement(
        "gpt2",
        r"\bh\.\d+\.attn\.c_attn",
        lora=("attn.c_attn",),  # query, key and value in one
        adapter=("attn.c_proj", "mlp.c_proj"),
        ia3=("attn.c_attn", "mlp.c_proj"),
        feedforward=("mlp.c_proj",),
        words=("wte",),
    ),
    replace(_LLAMA, architecture="glm", sign=r"\blayers\.\d+\.mlp\.gate_up_proj"),
    _LLAMA,
    replace(_LLAMA, architecture="qwen2", ia3=("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")),
)


def placement_of(network: Network) -> Placement:
    """Return the placement of a network's architecture.

    Raises:
        InputError: The architecture is not known.
    """
    fitting = [one for one in _PLACEMENTS if any(re.search(one.sign + "$", path) for path in network.dense_paths)]
    if not fitting:
        known = ", ".join(placement.architecture for placement in _PLACEMENTS)
        names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in network.dense_paths})[:12])
        raise InputError(
            f"target_modules is not given, and the network is of no architecture with a default placement ({known});"
            f" give 'all-linear' or some names of its dense layers ({names or 'it has none'})"
        )
    model_type = getattr(getattr(network.root, "config", None), "model_type", None)
    return next((one for one in fitting if one.architecture == model_type), fitting[0])
