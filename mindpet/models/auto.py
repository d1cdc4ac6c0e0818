"""Choose the class of a language model by the `model_type` of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindpet.models._causal import CausalLM
from mindpet.models._config_values import CONFIG_FILE, read_config_values
from mindpet.models._decoder_config import MODEL_TYPES
from mindpet.models.decoder import DecoderForCausalLM
from mindpet.models.gpt2 import GPT2Config, GPT2LMHeadModel
from mindpet.utils.exceptions import InputError

__all__ = ["is_causal_lm", "load_causal_lm", "read_model_type"]

_CLASSES: dict[str, type[CausalLM]] = {
    GPT2Config.model_type: GPT2LMHeadModel,
    **dict.fromkeys(MODEL_TYPES, DecoderForCausalLM),
}


def read_model_type(folder: str | Path) -> str | None:
    """Return `model_type` of a model folder's `config.json`, or None where it has none.

    Raises:
        InputError: The file is missing or no JSON object; the message names it.
    """
    return read_config_values(folder).get("model_type")


def is_causal_lm(folder: str | Path) -> bool:
    """Tell whether `load_causal_lm` knows the architecture in a folder.

    Raises:
        InputError: As `read_model_type`.
    """
    return read_model_type(folder) in tuple(_CLASSES)


def load_causal_lm(folder: str | Path, **arguments: Any) -> CausalLM:
    """Read a language model from a folder.

    Args:
        folder: The model's folder.
        **arguments: Of `from_pretrained`: `dropout` and `compute_dtype`.

    Returns:
        A GPT2LMHeadModel or a DecoderForCausalLM.

    Raises:
        InputError: Another architecture, or as `from_pretrained`; the message names the file.
    """
    model_type = read_model_type(folder)
    if model_type not in tuple(_CLASSES):
        raise InputError(
            f"{Path(folder) / CONFIG_FILE}: model_type is {model_type!r}; supported are {', '.join(_CLASSES)}: name "
            "the folder of such a language model."
        )
    return _CLASSES[model_type].from_pretrained(folder, **arguments)
