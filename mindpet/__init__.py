"""Parameter-efficient fine-tuning for MindSpore."""

import importlib
from typing import Any

__version__ = "2.0.0.dev0"

_HOMES = {
    "AdapterConfig": "mindpet.tuning.config",
    "BitFitConfig": "mindpet.tuning.config",
    "IA3Config": "mindpet.tuning.config",
    "LoRADense": "mindpet.delta.lora",
    "LoraConfig": "mindpet.tuning.config",
    "LowRankAdapterConfig": "mindpet.tuning.config",
    "PTuning2Config": "mindpet.tuning.config",
    "PrefixConfig": "mindpet.tuning.config",
    "TrainableParamsCheckPoint": "mindpet.graph.ckpt_util",
    "TrainableTokensConfig": "mindpet.tuning.config",
    "VeraConfig": "mindpet.tuning.config",
    "accelerate": "mindpet.tuning.accelerate",
    "active_adapter": "mindpet.tuning.adapters",
    "add_adapter": "mindpet.tuning.adapters",
    "combine_adapters": "mindpet.tuning.combine",
    "count_parameters": "mindpet.graph.freeze_utils",
    "decelerate": "mindpet.tuning.accelerate",
    "delete_adapter": "mindpet.tuning.adapters",
    "disable_adapter": "mindpet.tuning.adapters",
    "enable_adapter": "mindpet.tuning.adapters",
    "export_adapter": "mindpet.tuning.exchange.export",
    "freeze_delta": "mindpet.graph.freeze_utils",
    "freeze_modules": "mindpet.graph.freeze_utils",
    "get_peft_model": "mindpet.tuning.attach",
    "list_adapters": "mindpet.tuning.adapters",
    "lora_plus_groups": "mindpet.tuning.lora_plus",
    "merge": "mindpet.tuning.merge",
    "network_summary": "mindpet.tuning.report",
    "print_trainable_parameters": "mindpet.tuning.report",
    "target_report": "mindpet.tuning.report",
    "load_adapter": "mindpet.tuning.exchange.load",
    "save_adapter": "mindpet.tuning.exchange.save",
    "set_adapter": "mindpet.tuning.adapters",
    "set_adapter_index": "mindpet.tuning.stacking",
    "stack_adapters": "mindpet.tuning.stacking",
    "start_prompt": "mindpet.tuning.prompts",
    "unload": "mindpet.tuning.merge",
    "unstack_adapters": "mindpet.tuning.stacking",
    "unmerge": "mindpet.tuning.merge",
}
_ROOMS = ("cli", "data", "delta", "graph", "kernels", "models", "storage", "train", "tuning", "utils")

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import mindpet` does not load MindSpore."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"mindpet.{name}")
    raise AttributeError(f"module 'mindpet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
