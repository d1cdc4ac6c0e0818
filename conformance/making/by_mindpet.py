"""Adapters that MindPet writes for PEFT."""

from __future__ import annotations

from pathlib import Path

from libraries.mindpet import load_base
from mindspore import Tensor

import mindpet
from making.case import Case
from making.values import values
from mindpet.tuning.config import PeftConfig

__all__ = ["ADAPTERS", "make"]

ORIGIN = f"mindpet {mindpet.__version__}"

_HEAD = {"modules_to_save": ["classifier"]}


def _case(name: str, method: str, variant: str, base: str, covers: str) -> Case:
    return Case(name, method, variant, base, ORIGIN, covers)


# What is attached for each case.
ADAPTERS: dict[Case, PeftConfig] = {
    _case(
        "mindpet-lora",
        "lora",
        "plain, with the head",
        "bert-10",
        "names, shapes, the scale, and the head, as in peft-lora",
    ): mindpet.LoraConfig(r=3, lora_alpha=5, **_HEAD),
    _case(
        "mindpet-rslora",
        "lora",
        "rsLoRA on all dense layers",
        "bert-10",
        "the scale lora_alpha / sqrt(r)",
    ): mindpet.LoraConfig(r=2, use_rslora=True, target_modules="all-linear", **_HEAD),
    _case(
        "mindpet-dora",
        "lora",
        "DoRA by a regular expression",
        "bert-12",
        "magnitudes",
    ): mindpet.LoraConfig(r=3, use_dora=True, target_modules=r".*attention\.self\.(query|key|value)", **_HEAD),
    _case(
        "mindpet-pissa",
        "lora",
        "PiSSA",
        "bert-12",
        "a change of the untouched base: plain LoRA of twice the rank, also where patterns give ranks and scales",
    ): mindpet.LoraConfig(
        r=3, lora_alpha=5, init_lora_weights="pissa", rank_pattern={"value": 2}, alpha_pattern={"1.*": 3}
    ),
    _case(
        "mindpet-lora-patterns",
        "lora",
        "rank_pattern, alpha_pattern and bias='lora_only'",
        "bert-12",
        "patterns together with biases",
    ): mindpet.LoraConfig(
        r=4,
        target_modules=["query", "layer.[01].*dense"],
        rank_pattern={"query": 2},
        alpha_pattern={"layer.0.intermediate.dense": 2.5},
        bias="lora_only",
    ),
    _case(
        "mindpet-lora-bias-all",
        "lora",
        "bias='all', with an embedding",
        "bert-10",
        "every bias and shift, and an embedding",
    ): mindpet.LoraConfig(r=2, bias="all", target_modules=["word_embeddings", "key"]),
    _case(
        "mindpet-lora-saved-modules",
        "lora",
        "modules_to_save",
        "bert-12",
        "whole modules beside the head",
    ): mindpet.LoraConfig(r=2, modules_to_save=["classifier", "pooler", "embeddings.LayerNorm"]),
    _case(
        "mindpet-ia3",
        "ia3",
        "the architecture's own layers",
        "bert-10",
        "outputs and inputs scaled",
    ): mindpet.IA3Config(**_HEAD),
    _case(
        "mindpet-ia3-patterns",
        "ia3",
        "layers by patterns",
        "bert-12",
        "targets that PEFT needs a regular expression for; one layer has its input scaled",
    ): mindpet.IA3Config(target_modules=["*.1.*dense", "query"], feedforward_modules=["1.output.dense"]),
    _case(
        "mindpet-vera",
        "vera",
        "the projection in the file",
        "bert-10",
        "one projection for layers of different sizes",
    ): mindpet.VeraConfig(r=6, target_modules=["query", "intermediate.dense"], **_HEAD),
    _case(
        "mindpet-prefix",
        "prefix",
        "prefix tuning",
        "bert-12",
        "the prompt that the layers' own projections make",
    ): mindpet.PrefixConfig(num_virtual_tokens=3, encoder_hidden_size=6, embed_dim=5, **_HEAD),
    _case(
        "mindpet-ptuning2",
        "prefix",
        "P-Tuning v2",
        "bert-10",
        "the prompt is the trained table",
    ): mindpet.PTuning2Config(num_virtual_tokens=4, **_HEAD),
    _case(
        "mindpet-ptuning2-projected",
        "prefix",
        "P-Tuning v2 with a projection",
        "bert-12",
        "the prompt that comes out; mindpet_projection.safetensors beside it is to be passed over",
    ): mindpet.PTuning2Config(num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6, **_HEAD),
    _case(
        "mindpet-tokens",
        "tokens",
        "trainable tokens",
        "bert-10",
        "rows of the embedding are replaced, in the order of token_indices",
    ): mindpet.TrainableTokensConfig(token_indices=(5, 2, 20)),
    _case(
        "mindpet-gpt2-lora",
        "lora",
        "a decoder whose weights lie the other way round",
        "gpt2-8",
        "fan_in_fan_out, which is a matter of the layer and not of the adapter",
    ): mindpet.LoraConfig(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"]),
    _case(
        "mindpet-llama-lora",
        "lora",
        "a decoder",
        "llama-12",
        "the architecture's own layers",
    ): mindpet.LoraConfig(r=2, lora_alpha=3),
    _case(
        "mindpet-llama-ptuning2",
        "prefix",
        "P-Tuning v2 with shared keys and values",
        "llama-12",
        "token_dim is that of the keys",
    ): mindpet.PTuning2Config(num_virtual_tokens=3),
}


def make(case: Case, config: PeftConfig, bases: Path, folder: Path) -> None:
    """Write an adapter as MindPet writes it for PEFT."""
    net = mindpet.get_peft_model(load_base(bases / case.base), config)
    for parameter in net.trainable_params():
        parameter.set_data(Tensor(values(case.name, parameter.name, parameter.shape, spread=0.4)))
    mindpet.export_adapter(net, folder, base=case.base)
