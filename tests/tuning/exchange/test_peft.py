"""The same numbers here and in Hugging Face PEFT, whichever side an adapter comes from."""

import contextlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

import mindpet
from mindpet.models.auto import load_causal_lm
from mindpet.models.bert import BertForSequenceClassification
from mindpet.tuning.exchange.merged import write_merged_model
from mindpet.tuning.exchange.own import read_own, write_own
from mindpet.tuning.exchange.report import UnverifiedAdapterWarning
from tests.tuning.exchange.damage import CONFIG, TENSORS

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "num_attention_heads": 5,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
IDS = np.array([[2, 5, 9, 3, 60], [2, 7, 9, 11, 3], [1, 58, 3, 0, 0]], np.int32)
MASK = (IDS > 0).astype(np.int32)
SEGMENTS = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 0]], np.int32)
ATTENTION = ["query", "value"]
HEAD = {"task_type": "SEQ_CLS"}
LORA, IA3, VERA, PREFIX, TOKENS = (
    "LoraConfig",
    "IA3Config",
    "VeraConfig",
    "PrefixTuningConfig",
    "TrainableTokensConfig",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a BERT of transformers' own random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, initializer_range=0.15))
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.1)
    model.save_pretrained(folder)
    return folder


def there(base):
    import transformers

    return transformers.BertForSequenceClassification.from_pretrained(base).eval()


def here(base):
    return BertForSequenceClassification.from_pretrained(base)


def logits_there(model):
    import torch

    with torch.no_grad():
        batch = (torch.tensor(value, dtype=torch.long) for value in (IDS, MASK, SEGMENTS))
        return model.eval()(
            **dict(zip(("input_ids", "attention_mask", "token_type_ids"), batch, strict=True))
        ).logits.numpy()


def logits_here(net):
    net.set_train(False)
    return net(Tensor(IDS), Tensor(MASK), Tensor(SEGMENTS)).asnumpy()


def trained_there(base, config, seed=0):
    """Return a model with an adapter of PEFT's whose trainable parameters are random."""
    import peft
    import torch

    name, fields = config
    model = peft.get_peft_model(there(base), getattr(peft, name)(**fields))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def opened_there(base, folder):
    """Return a model with the adapter in a folder, which PEFT takes without a word of warning."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return peft.PeftModel.from_pretrained(there(base), folder)


def trained_here(base, config, **room):
    """Return a network with an adapter of ours whose values are random, and with nothing in the room for others."""
    return perturb(mindpet.get_peft_model(here(base), config, **room))


def perturb(net):
    generator = np.random.default_rng(1)
    write_own(
        net,
        {
            name: replace(tensor, values=tensor.values + 0.2 * generator.normal(size=tensor.shape).astype(np.float32))
            for name, tensor in read_own(net).items()
        },
    )
    return net


def own_values(net):
    return {name: (tensor.dtype, tensor.shape, tensor.values.tobytes()) for name, tensor in read_own(net).items()}


def load(net, folder):
    with pytest.warns(UnverifiedAdapterWarning):
        mindpet.load_adapter(net, folder)
    return net


def tensors_of(folder):
    return {name: (value.dtype, value.shape, value.tobytes()) for name, value in load_file(folder / TENSORS).items()}


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


FROM_PEFT = {
    "LoRA": (LORA, {"r": 3, "lora_alpha": 5, "target_modules": ATTENTION, **HEAD}),
    "LoRA without a head": (LORA, {"r": 3, "target_modules": ["query"], "init_lora_weights": "gaussian"}),
    "rsLoRA": (LORA, {"r": 4, "lora_alpha": 5, "target_modules": ATTENTION, "use_rslora": True}),
    "DoRA": (LORA, {"r": 3, "lora_alpha": 6, "target_modules": ["query", "output.dense"], "use_dora": True, **HEAD}),
    "all dense layers": (LORA, {"r": 2, "target_modules": "all-linear", **HEAD}),
    "a regular expression": (
        LORA,
        {"r": 2, "target_modules": r".*layer\.[01].*(query|value|dense)", "exclude_modules": r".*\.1\..*dense"},
    ),
    "left out": (LORA, {"r": 2, "target_modules": ["query", "dense"], "exclude_modules": ["pooler.dense"]}),
    "some layers": (LORA, {"r": 2, "target_modules": ATTENTION, "layers_to_transform": [0]}),
    "one layer by its list": (
        LORA,
        {"r": 2, "target_modules": ATTENTION, "layers_to_transform": 1, "layers_pattern": "layer"},
    ),
    "patterns": (
        LORA,
        {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": [*ATTENTION, "intermediate.dense"],
            "rank_pattern": {"value": 2, r"layer\.1\.attention\.self\.query": 7, "nowhere": 3},
            "alpha_pattern": {"intermediate.dense": 2.5},
        },
    ),
    "every bias": (LORA, {"r": 2, "target_modules": ["query"], "bias": "all"}),
    "every bias and a head": (
        LORA,
        {"r": 2, "target_modules": ["query"], "bias": "all", "modules_to_save": ["pooler"], **HEAD},
    ),
    "biases of adapted layers": (LORA, {"r": 2, "target_modules": ["query"], "bias": "lora_only", **HEAD}),
    "saved modules": (
        LORA,
        {
            "r": 2,
            "target_modules": ["query", "dense"],
            "modules_to_save": ["classifier", "pooler", "embeddings.LayerNorm", "token_type_embeddings"],
        },
    ),
    "an embedding": (LORA, {"r": 3, "target_modules": ["query", "position_embeddings"]}),
    "orthogonal start": (LORA, {"r": 4, "target_modules": ["query"], "init_lora_weights": "orthogonal"}),
    "IA3": (IA3, HEAD),
    "IA3 by patterns": (IA3, {"target_modules": r".*\.(key|dense)", "feedforward_modules": r".*\.output\.dense"}),
    "IA3 without feed-forward layers": (IA3, {"target_modules": ["key"], "feedforward_modules": []}),
    "VeRA": (VERA, {"r": 7, "target_modules": ["query", "output.dense"], "d_initial": 0.3, **HEAD}),
    "VeRA of another seed": (VERA, {"r": 5, "target_modules": ["value"], "projection_prng_key": 11}),
    "VeRA from its seed alone": (VERA, {"r": 5, "target_modules": ["value"], "save_projection": False}),
    "prefix": (PREFIX, {"num_virtual_tokens": 4, **HEAD}),
    "projected prefix": (
        PREFIX,
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 7, **HEAD},
    ),
    "tokens": (TOKENS, {"token_indices": [9, 2, 60], "target_modules": ["word_embeddings"]}),
}
# What these write twice, or not, does not come back.
ADDS_TENSORS = {"VeRA from its seed alone"}


@pytest.mark.parametrize("name", FROM_PEFT)
def test_what_peft_has_trained_gives_the_same_logits_here_and_goes_back_bit_for_bit(tmp_path, base, name):
    model = trained_there(base, FROM_PEFT[name])
    expected = logits_there(model)
    model.save_pretrained(tmp_path / "there")
    net = load(here(base), tmp_path / "there")
    same(logits_here(net), expected)
    assert np.abs(expected - logits_here(here(base))).max() > 1e-2

    mindpet.export_adapter(net, tmp_path / "here")
    found, original = tensors_of(tmp_path / "here"), tensors_of(tmp_path / "there")
    assert found == original or (name in ADDS_TENSORS and found.items() >= original.items())
    again = opened_there(base, tmp_path / "here")
    same(logits_there(again), expected)


QKV = r".*attention\.self\.(query|key|value)"
FROM_HERE = {
    "LoRA": mindpet.LoraConfig(r=3, lora_alpha=5, modules_to_save=["classifier"]),
    "rsLoRA": mindpet.LoraConfig(r=4, use_rslora=True, target_modules="all-linear", modules_to_save=["classifier"]),
    "DoRA": mindpet.LoraConfig(r=3, use_dora=True, target_modules=QKV, modules_to_save=["classifier"]),
    "PiSSA": mindpet.LoraConfig(
        r=3, lora_alpha=5, init_lora_weights="pissa", rank_pattern={"value": 2}, alpha_pattern={"1.*": 3}
    ),
    "PiSSA with rsLoRA": mindpet.LoraConfig(r=4, lora_alpha=7, init_lora_weights="pissa", use_rslora=True),
    "patterns": mindpet.LoraConfig(
        r=4,
        target_modules=["query", "layer.[01].*dense"],
        rank_pattern={"query": 2},
        alpha_pattern={"layer.0.intermediate.dense": 2.5},
        bias="lora_only",
    ),
    "every bias": mindpet.LoraConfig(r=2, bias="all", target_modules=["word_embeddings", "key"]),
    "saved modules": mindpet.LoraConfig(r=2, modules_to_save=["classifier", "pooler", "embeddings.LayerNorm"]),
    "IA3": mindpet.IA3Config(modules_to_save=["classifier"]),
    "IA3 elsewhere": mindpet.IA3Config(target_modules=[r"*.1.*dense", "query"], feedforward_modules=["1.output.dense"]),
    "VeRA": mindpet.VeraConfig(r=6, target_modules=["query", "intermediate.dense"], modules_to_save=["classifier"]),
    "tokens": mindpet.TrainableTokensConfig(token_indices=(5, 2, 58)),
    "prefix tuning without a head": mindpet.PrefixConfig(num_virtual_tokens=3, encoder_hidden_size=6, embed_dim=9),
    "P-Tuning v2": mindpet.PTuning2Config(num_virtual_tokens=4, modules_to_save=["classifier"]),
    "projected P-Tuning v2": mindpet.PTuning2Config(
        num_virtual_tokens=4, prefix_projection=True, encoder_hidden_size=6, modules_to_save=["classifier"]
    ),
}


@pytest.mark.parametrize("name", FROM_HERE)
def test_what_is_trained_here_gives_the_same_logits_in_peft_and_comes_back_bit_for_bit(tmp_path, base, name):
    config = FROM_HERE[name]
    room = {config.capacity: config.size + 3} if config.size_field else {}
    net = trained_here(base, config, **room)
    mindpet.export_adapter(net, tmp_path / "folder", base=str(base))
    model = opened_there(base, tmp_path / "folder")
    same(logits_there(model), logits_here(net))

    again = load(here(base), tmp_path / "folder")
    same(logits_here(again), logits_here(net))
    if "PiSSA" not in name:
        assert own_values(again) == own_values(net)
    mindpet.export_adapter(again, tmp_path / "again")
    assert tensors_of(tmp_path / "again") == tensors_of(tmp_path / "folder")


CHANGED_BASES = {
    "pissa": "init_lora_weights is 'pissa', which has changed the base too",
    "olora": "init_lora_weights is 'olora', which has changed the base too",
    "pissa_niter_4": "init_lora_weights is 'pissa_niter_4', which has changed the base too",
}


@pytest.mark.parametrize("start", CHANGED_BASES)
def test_a_start_that_changes_the_base_is_refused_and_its_conversion_is_read(tmp_path, base, start):
    config = (LORA, {"r": 3, "target_modules": ["query"], "init_lora_weights": start})
    import peft

    model = peft.get_peft_model(there(base), peft.LoraConfig(**config[1]))
    first = tmp_path / "first"
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(first)
    model.peft_config["default"].init_lora_weights = start
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    expected = logits_there(model)
    model.save_pretrained(tmp_path / "changed")
    with pytest.raises(mindpet.utils.exceptions.InputError, match=CHANGED_BASES[start]):
        mindpet.load_adapter(here(base), tmp_path / "changed")
    with contextlib.suppress(ValueError):
        model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=first)
        same(logits_here(load(here(base), tmp_path / "plain")), expected)


def test_the_configuration_says_all_that_readers_ask_for(tmp_path, base):
    net = trained_here(base, FROM_HERE["LoRA"])
    mindpet.export_adapter(net, tmp_path / "folder", base="the/model")
    assert json.loads((tmp_path / "folder" / CONFIG).read_text()) == {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "the/model",
        "inference_mode": True,
        "r": 3,
        "lora_alpha": 5,
        "lora_dropout": 0,
        "target_modules": ["attention.self.query", "attention.self.value"],
        "modules_to_save": ["classifier"],
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


MERGED = {
    "LoRA": FROM_HERE["rsLoRA"],
    "DoRA": FROM_HERE["DoRA"],
    "IA3": FROM_HERE["IA3"],
    "tokens": FROM_HERE["tokens"],
    "BitFit": mindpet.BitFitConfig(),
}


@pytest.mark.parametrize("name", MERGED)
def test_transformers_computes_the_same_with_the_merged_model(tmp_path, base, name):
    net = trained_here(base, MERGED[name])
    write_merged_model(net, base, tmp_path / "merged")
    same(logits_there(there(tmp_path / "merged")), logits_here(net))


BOTTLENECKS = {
    "both": {"bottleneck_size": 7},
    "a divisor": {"bottleneck_size": 10, "non_linearity": "relu"},
    "after attention": {"bottleneck_size": 3, "target_modules": ["attention.output.dense"], "non_linearity": "silu"},
    "in one layer": {"bottleneck_size": 5, "target_modules": ["layer.1.output.dense"], "non_linearity": "tanh"},
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_adapters_library_computes_the_same_with_a_bottleneck(tmp_path, base, name):
    import adapters

    config = mindpet.AdapterConfig(**BOTTLENECKS[name], modules_to_save=["classifier"])
    net = trained_here(base, config, max_rank=config.bottleneck_size + 2)
    mindpet.export_adapter(net, tmp_path / "folder", "adapters")
    model = there(base)
    adapters.init(model)
    loaded = model.load_adapter(str(tmp_path / "folder"), use_safetensors=True)
    model.set_active_adapters(loaded)
    same(logits_there(model), logits_here(net))


CONVOLUTIONS = {
    "valid": {"pad_mode": "valid", "stride": 2},
    "same": {"pad_mode": "same", "kernel_size": (3, 2)},
    "padded, in groups": {"pad_mode": "pad", "padding": 1, "group": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_peft_convolves_the_same(tmp_path, name):
    import peft
    import torch
    from mindspore import nn

    fields = {"kernel_size": 3} | CONVOLUTIONS[name]
    net = nn.SequentialCell(nn.Conv2d(4, 6, **fields, has_bias=True))
    padding = {"valid": 0, "same": "same", "pad": fields.get("padding")}[fields["pad_mode"]]
    groups, stride = fields.get("group", 1), fields.get("stride", 1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, fields["kernel_size"], stride=stride, padding=padding, groups=groups)
    )
    for ours, theirs in zip(net.get_parameters(), model.parameters(), strict=True):
        theirs.data = torch.tensor(ours.asnumpy())
    mindpet.get_peft_model(net, mindpet.LoraConfig(r=4, lora_alpha=6, target_modules=["0"]))
    perturb(net)
    mindpet.export_adapter(net, tmp_path / "folder")
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    with torch.no_grad():
        there = peft.PeftModel.from_pretrained(model, tmp_path / "folder")(torch.tensor(x)).numpy()
    same(there, net(Tensor(x)).asnumpy())


LANGUAGE = {"gpt2": (["c_attn", "c_fc"], "c_fc"), "llama": (["q_proj", "down_proj"], "down_proj")}


@pytest.fixture(scope="module")
def languages(tmp_path_factory):
    """Folders with language models of transformers' own random weights, by architecture."""
    import torch
    import transformers

    torch.manual_seed(0)
    gpt2 = transformers.GPT2Config(vocab_size=61, n_positions=24, n_embd=20, n_layer=2, n_head=4, initializer_range=0.2)
    llama = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("languages")
    for config in (gpt2, llama):
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / config.model_type)
    return folder


@pytest.mark.parametrize("method", [LORA, IA3, PREFIX, TOKENS])
@pytest.mark.parametrize("architecture", LANGUAGE)
def test_language_models_exchange_too(tmp_path, languages, architecture, method):
    import peft
    import torch
    import transformers

    targets, inner = LANGUAGE[architecture]
    fields = {
        LORA: {"r": 3, "target_modules": targets, "fan_in_fan_out": architecture == "gpt2"},
        IA3: {"target_modules": targets, "feedforward_modules": [inner], "fan_in_fan_out": architecture == "gpt2"},
        PREFIX: {"num_virtual_tokens": 3},
        TOKENS: {"token_indices": [9, 2, 60]},
    }[method]
    model = transformers.AutoModelForCausalLM.from_pretrained(languages / architecture)
    model = peft.get_peft_model(model, getattr(peft, method)(**fields, task_type="CAUSAL_LM")).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "there")
    with torch.no_grad():
        expected = model(**{"input_ids": torch.tensor(IDS).long(), "attention_mask": torch.tensor(MASK)}).logits.numpy()
    net = load(load_causal_lm(languages / architecture), tmp_path / "there")
    net.set_train(False)
    same(net(Tensor(IDS), Tensor(MASK)).asnumpy()[MASK > 0], expected[MASK > 0])
    mindpet.export_adapter(net, tmp_path / "here")
    assert tensors_of(tmp_path / "here") == tensors_of(tmp_path / "there")
    assert json.loads((tmp_path / "here" / CONFIG).read_text())["task_type"] == "CAUSAL_LM"
    if method != PREFIX:
        write_merged_model(net, languages / architecture, tmp_path / "merged")
        merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        with torch.no_grad():
            found = merged(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).logits.numpy()
        same(found[MASK > 0], expected[MASK > 0])
