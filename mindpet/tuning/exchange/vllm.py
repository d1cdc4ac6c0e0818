"""What vLLM can serve of an adapter in PEFT's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindpet.tuning.exchange.merged import TO_MERGE
from mindpet.tuning.exchange.peft.prompt import PEFT_TYPE as PROMPT
from mindpet.tuning.exchange.values import HostTensor
from mindpet.utils.exceptions import InputError

__all__ = ["RANKS", "check_vllm"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's option --max-lora-rank takes
_DEFAULT_RANK = 16
_MERGE = f"{TO_MERGE}, and serve that"


def check_vllm(config: Mapping[str, Any], tensors: Mapping[str, HostTensor], max_lora_rank: int | None) -> None:
    """Refuse an adapter that vLLM cannot serve, or would serve with other numbers.

    Args:
        config: The content of its `adapter_config.json`.
        tensors: By PEFT's names.
        max_lora_rank: The largest rank that the server is started with; None for vLLM's default.

    Raises:
        InputError: It is no LoRA of dense layers and embeddings with one rank and scale, or its rank is too large.
    """
    if config["peft_type"] == PROMPT:
        raise InputError(
            f"vLLM serves LoRA only, and this is PEFT's {PROMPT}, which cannot be merged either; serve it with MindPet "
            "(`mindpet infer`) or with PEFT (format 'peft'), or train LoRA"
        )
    if config["peft_type"] != "LORA":
        raise InputError(f"vLLM serves LoRA only, and this is PEFT's {config['peft_type']}; {_MERGE}")
    for key, has in (
        ("use_dora", "the magnitudes of DoRA"),
        ("modules_to_save", "trained modules of the base"),
        ("rank_pattern", "ranks of single layers, whose scale it takes from the one rank"),
        ("alpha_pattern", "values of lora_alpha for single layers"),
    ):
        if config[key]:
            raise InputError(f"{key} is {config[key]!r}, and vLLM takes no {has}; {_MERGE}")
    if config["bias"] != "none":
        raise InputError(f"bias is {config['bias']!r}, and vLLM takes no trained biases; {_MERGE}")
    if kernels := [name for name, tensor in tensors.items() if len(tensor.shape) > 2]:
        raise InputError(f"{kernels[0]} belongs to a convolution, which vLLM does not adapt; {_MERGE}")
    largest = _DEFAULT_RANK if max_lora_rank is None else max_lora_rank
    if config["r"] > largest:
        fitting = next((rank for rank in RANKS if rank >= config["r"]), None)
        told = (
            f"start it with --max-lora-rank {fitting} and give max_lora_rank={fitting} here too, or " if fitting else ""
        )
        raise InputError(f"the rank is {config['r']}, and vLLM is started with at most {largest}; {told}{_MERGE}")
