"""Adapters that PEFT writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from libraries.peft import load_base, run

from making.case import Case
from making.values import values

__all__ = ["ADAPTERS", "ORIGIN", "make"]

ORIGIN = f"peft {peft.__version__}"
CONFIG_FILE = "adapter_config.json"

_ATTENTION = ["query", "value"]
_HEAD = {"task_type": "SEQ_CLS"}
_LANGUAGE = {"task_type": "CAUSAL_LM"}
_CONFIGS = {
    "lora": peft.LoraConfig,
    "vera": peft.VeraConfig,
    "ia3": peft.IA3Config,
    "prefix": peft.PrefixTuningConfig,
    "tokens": peft.TrainableTokensConfig,
}


def _case(name: str, method: str, variant: str, base: str, covers: str) -> Case:
    return Case(name, method, variant, base, ORIGIN, covers)


# What is attached for each case.
ADAPTERS: dict[Case, Mapping[str, Any]] = {
    _case(
        "peft-lora",
        "lora",
        "plain, with the head",
        "bert-12",
        "names, shapes, the scale lora_alpha / r, and the classifier that task_type SEQ_CLS saves whole",
    ): {"r": 3, "lora_alpha": 5, "target_modules": _ATTENTION, **_HEAD},
    _case(
        "peft-lora-no-head",
        "lora",
        "plain, without a head",
        "bert-10",
        "no task_type: nothing but LoRA in the file, one target only",
    ): {"r": 2, "target_modules": ["query"]},
    _case(
        "peft-rslora",
        "lora",
        "rsLoRA",
        "bert-12",
        "the scale lora_alpha / sqrt(r)",
    ): {"r": 4, "lora_alpha": 5, "target_modules": _ATTENTION, "use_rslora": True},
    _case(
        "peft-dora",
        "lora",
        "DoRA",
        "bert-12",
        "magnitudes, which are divided by the norms of base and change together",
    ): {"r": 3, "lora_alpha": 6, "target_modules": ["query", "output.dense"], "use_dora": True, **_HEAD},
    _case(
        "peft-lora-all-linear",
        "lora",
        "all dense layers",
        "bert-10",
        "all-linear: each dense layer but the classifier, which is saved whole",
    ): {"r": 2, "target_modules": "all-linear", **_HEAD},
    _case(
        "peft-lora-regex",
        "lora",
        "targets by a regular expression",
        "bert-10",
        "a regular expression fits the whole path, and exclude_modules takes some layers out again",
    ): {
        "r": 2,
        "target_modules": r".*layer\.[12].*(query|value|dense)",
        "exclude_modules": r".*\.2\..*dense",
    },
    _case(
        "peft-lora-layers",
        "lora",
        "targets in some layers",
        "bert-10",
        "layers_to_transform",
    ): {"r": 2, "target_modules": _ATTENTION, "layers_to_transform": [0, 2]},
    _case(
        "peft-lora-patterns",
        "lora",
        "rank_pattern and alpha_pattern",
        "bert-12",
        "ranks and scales of single layers; a key fits the end of a path, may be a regular expression or fit nothing",
    ): {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": [*_ATTENTION, "intermediate.dense"],
        "rank_pattern": {"value": 2, r"layer\.1\.attention\.self\.query": 5, "nowhere": 3},
        "alpha_pattern": {"intermediate.dense": 2.5},
    },
    _case(
        "peft-lora-bias-only",
        "lora",
        "bias='lora_only'",
        "bert-12",
        "the biases of adapted layers, under base_layer",
    ): {"r": 2, "target_modules": ["query"], "bias": "lora_only", **_HEAD},
    _case(
        "peft-lora-bias-all",
        "lora",
        "bias='all'",
        "bert-10",
        "every bias and shift, adapted layers or not; those of saved modules three times, within one by another name",
    ): {"r": 2, "target_modules": ["query"], "bias": "all", "modules_to_save": ["pooler"], **_HEAD},
    _case(
        "peft-lora-embedding",
        "lora",
        "an embedding",
        "bert-10",
        "lora_embedding_A and _B, whose matrices lie the other way round",
    ): {"r": 3, "target_modules": ["query", "word_embeddings"]},
    _case(
        "peft-lora-saved-modules",
        "lora",
        "modules_to_save",
        "bert-12",
        "whole modules of several kinds beside the head, one of them with a dense layer that would be a target",
    ): {
        "r": 2,
        "target_modules": ["query", "dense"],
        "modules_to_save": ["classifier", "pooler", "embeddings.LayerNorm", "token_type_embeddings"],
    },
    _case(
        "peft-ia3",
        "ia3",
        "the architecture's own layers",
        "bert-12",
        "outputs and inputs scaled",
    ): _HEAD,
    _case(
        "peft-ia3-no-feedforward",
        "ia3",
        "no feed-forward layers",
        "bert-10",
        "feedforward_modules is empty: outputs are scaled only",
    ): {"target_modules": ["key"], "feedforward_modules": []},
    _case(
        "peft-ia3-regex",
        "ia3",
        "layers by regular expressions",
        "bert-10",
        "which layers have their inputs scaled follows from a second regular expression",
    ): {"target_modules": r".*\.(key|dense)", "feedforward_modules": r".*\.output\.dense"},
    _case(
        "peft-vera",
        "vera",
        "the projection in the file",
        "bert-12",
        "one projection for layers of different sizes, which take a corner of it each",
    ): {"r": 7, "target_modules": ["query", "output.dense"], "d_initial": 0.3, **_HEAD},
    _case(
        "peft-vera-key",
        "vera",
        "the projection by its key alone",
        "bert-10",
        "save_projection is false: the projection is torch's Kaiming-uniform numbers from projection_prng_key",
    ): {"r": 5, "target_modules": ["value"], "projection_prng_key": 11, "save_projection": False},
    _case(
        "peft-prefix",
        "prefix",
        "prefix tuning",
        "bert-12",
        "keys and values before those of each layer; the text's positions begin after the prefix",
    ): {"num_virtual_tokens": 4, **_HEAD},
    _case(
        "peft-prefix-projected",
        "prefix",
        "prefix tuning with a projection",
        "bert-10",
        "PEFT saves the prompt that comes out of the projection",
    ): {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 7, **_HEAD},
    _case(
        "peft-tokens",
        "tokens",
        "trainable tokens",
        "bert-12",
        "rows of the embedding are replaced, in the order of token_indices",
    ): {"token_indices": [9, 2, 22], "target_modules": ["word_embeddings"]},
    _case(
        "peft-gpt2-lora",
        "lora",
        "a decoder whose weights lie the other way round",
        "gpt2-8",
        "GPT-2's Conv1D: fan_in_fan_out is true, and one layer makes query, key and value",
    ): {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True, **_LANGUAGE},
    _case(
        "peft-gpt2-dora",
        "lora",
        "DoRA where weights lie the other way round",
        "gpt2-8",
        "norms are taken over the inputs of each output, along the other axis of the file's weight",
    ): {"r": 2, "target_modules": ["c_fc"], "use_dora": True, "fan_in_fan_out": True, **_LANGUAGE},
    _case(
        "peft-gpt2-prefix",
        "prefix",
        "prefix tuning on a decoder",
        "gpt2-8",
        "absolute positions begin after the prefix",
    ): {"num_virtual_tokens": 4, **_LANGUAGE},
    _case(
        "peft-llama-lora",
        "lora",
        "a decoder",
        "llama-12",
        "query and value of different widths, since heads share keys and values",
    ): {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"], **_LANGUAGE},
    _case(
        "peft-llama-all-linear",
        "lora",
        "all dense layers of a decoder",
        "llama-12",
        "all-linear leaves out the language model's head",
    ): {"r": 2, "target_modules": "all-linear", "use_rslora": True, **_LANGUAGE},
    _case(
        "peft-llama-ia3",
        "ia3",
        "a decoder",
        "llama-12",
        "keys, values and the input of down_proj scaled",
    ): _LANGUAGE,
    _case(
        "peft-llama-prefix",
        "prefix",
        "prefix tuning with shared keys and values",
        "llama-12",
        "token_dim is that of the keys; the prefix's keys are not rotated, the text's positions begin after it",
    ): {"num_virtual_tokens": 3, **_LANGUAGE},
}


def make(case: Case, fields: Mapping[str, Any], bases: Path, folder: Path, inputs: dict[str, np.ndarray]) -> None:
    """Write an adapter as PEFT writes it, and check that PEFT reads it back with the same logits.

    Args:
        case: The case.
        fields: Of the configuration.
        bases: The folder of the base models.
        folder: Where to write.
        inputs: What the check runs.

    Raises:
        RuntimeError: PEFT reads back another adapter.
    """
    config = _CONFIGS[case.method](**fields)
    model = peft.get_peft_model(load_base(bases / case.base), config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                trained = values(case.name, key, tuple(parameter.shape), spread=0.4)
                parameter.copy_(torch.from_numpy(trained))
    model.save_pretrained(folder)
    again = peft.PeftModel.from_pretrained(load_base(bases / case.base), folder)
    difference = np.abs(run(model.eval(), inputs) - run(again.eval(), inputs)).max()
    if not difference <= 1e-6:
        raise RuntimeError(f"{case.name}: PEFT reads back another adapter than it has written ({difference:.1e})")
    _tidy(folder, case.base, config)


def _tidy(folder: Path, base: str, config: peft.PeftConfig) -> None:
    """Remove the model card, and what differs from run to run: the base's path, and the order of sets."""
    (folder / "README.md").unlink()
    content = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    for key in content:
        if isinstance(getattr(config, key, None), set):
            content[key] = sorted(content[key])
    content["base_model_name_or_path"] = base
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
