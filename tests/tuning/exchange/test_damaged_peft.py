"""Folders in PEFT's form that are damaged, or of another network: each is refused with its reason, and changes nothing.

They are written without PEFT, as it writes them.
"""

import json
import re
import shutil

import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import load_file, save_file

import mindpet
from mindpet.models.gpt2 import GPT2Config, GPT2LMHeadModel
from mindpet.tuning.exchange.report import UnverifiedAdapterWarning
from mindpet.utils.exceptions import InputError
from tests.tuning.exchange.damage import CONFIG, TENSORS, read_config, write_config
from tests.tuning.exchange.networks import Stack, adapter_values, lora, outputs, snapshot, trained

START = "base_model.model."
COMMON = {
    "auto_mapping": None,
    "base_model_name_or_path": "base",
    "inference_mode": True,
    "peft_version": "0.21.2",
    "revision": None,
    "task_type": None,
}
LORA = COMMON | {
    "alpha_pattern": {},
    "bias": "none",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 6,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "modules_to_save": ["head", "score"],
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "target_modules": ["first", "second"],
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}
SHAPES = {
    "first.lora_A.weight": (2, 6),
    "first.lora_B.weight": (8, 2),
    "second.lora_A.weight": (2, 8),
    "second.lora_B.weight": (5, 2),
    "head.weight": (3, 5),
    "head.bias": (3,),
}


def numbers(shapes, seed=0):
    """Return random tensors by PEFT's names."""
    generator = np.random.default_rng(seed)
    return {START + name: generator.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    write_config(folder, config)
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    return folder


def load(network, folder):
    with pytest.warns(UnverifiedAdapterWarning):
        mindpet.load_adapter(network, folder)
    return network


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "peft", LORA, numbers(SHAPES))


def with_config(**changes):
    return lambda folder: write_config(folder, read_config(folder) | changes)


def with_tensors(edit):
    """Return what changes the tensors of a folder, by their names without PEFT's prefix."""

    def change(folder):
        tensors = {name.removeprefix(START): value for name, value in load_file(folder / TENSORS).items()}
        edited = edit(tensors) or tensors
        save_file({START + name: value for name, value in edited.items()}, folder / TENSORS, {"format": "pt"})

    return change


def without(*names):
    return with_tensors(lambda held: {name: value for name, value in held.items() if name not in names})


def having(name, value):
    return with_tensors(lambda held: held | {name: value})


def renamed(old, new):
    return with_tensors(lambda held: {name.replace(old, new): value for name, value in held.items()})


def reshaped(name, shape):
    return having(name, np.ones(shape, np.float32))


def swapped(held):
    pair = {"first.lora_A.weight": held["first.lora_B.weight"], "first.lora_B.weight": held["first.lora_A.weight"]}
    return held | pair


def without_prefix(folder):
    tensors = load_file(folder / TENSORS)
    save_file({name.removeprefix("base_model."): value for name, value in tensors.items()}, folder / TENSORS)


def with_header(edit):
    """Return what changes the header of the file of tensors, as text of the same length or another."""

    def change(folder):
        data = (folder / TENSORS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = edit(data[8 : 8 + length].decode()).encode()
        (folder / TENSORS).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])

    return change


def twice(header):
    entries = json.loads(header)
    name = START + "first.lora_A.weight"
    return header.replace("{", f'{{"{name}":{json.dumps(entries[name])},', 1)


def cut(file, share):
    return lambda folder: (folder / file).write_bytes((data := (folder / file).read_bytes())[: int(len(data) * share)])


def moved_to(name):
    return lambda folder: (folder / TENSORS).rename(folder / name)


def linked(target):
    def change(folder):
        (folder / TENSORS).unlink()
        (folder / TENSORS).symlink_to(target)

    return change


NAN, INF = np.full((3,), np.nan, np.float32), np.full((3,), np.inf, np.float32)
MAGNITUDES = {
    "first.lora_magnitude_vector": np.ones(8, np.float32),
    "second.lora_magnitude_vector": np.ones(5, np.float32),
}

DAMAGES = {
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "holds neither adapter_config.json"),
    "no tensors' file": (lambda folder: (folder / TENSORS).unlink(), "adapter_model.safetensors does not exist"),
    "a pickle instead": (moved_to("adapter_model.bin"), "adapter_model.bin is a pickle, which could run code"),
    "an empty file": (cut(TENSORS, 0), "cannot be read as safetensors"),
    "a truncated file": (cut(TENSORS, 0.8), "cannot be read as safetensors"),
    "a truncated header": (cut(TENSORS, 0.05), "cannot be read as safetensors"),
    "a flipped bit in the header's length": (
        lambda folder: (folder / TENSORS).write_bytes(b"\xff" + (folder / TENSORS).read_bytes()[1:]),
        "cannot be read as safetensors",
    ),
    "a flipped bit in a name": (with_header(lambda text: text.replace("first", "fhrst")), "first"),
    "a flipped bit in a dtype": (with_header(lambda text: text.replace("F32", "F30", 1)), "cannot be read as"),
    "a flipped bit in the metadata": (with_header(lambda text: text.replace('"pt"', '"qt"')), "metadata is 'qt'"),
    "a layer twice": (with_header(twice), "first.lora_A.weight' occurs twice"),
    "a layer by two names": (
        having("first.base_layer.lora_A.weight", np.ones((2, 6), np.float32)),
        "there are tensors for first.base_layer, which the network has not",
    ),
    "a link to nothing": (linked("nowhere.safetensors"), "adapter_model.safetensors does not exist"),
    "a link to itself": (linked(TENSORS), "cannot be read|does not exist"),
    "a link to a folder": (linked("."), "is not a file"),
    "no tensor in it": (with_tensors(lambda held: {"x": np.ones(1, np.float32)}), "no tensor for first"),
    "no JSON": (lambda folder: (folder / CONFIG).write_text("{'r': 2}"), "line 1: this is not JSON"),
    "truncated JSON": (cut(CONFIG, 0.5), "this is not JSON"),
    "a list in the place of the configuration": (lambda folder: write_config(folder, [LORA]), "no configuration of"),
    "a key twice": (
        lambda folder: (folder / CONFIG).write_text(json.dumps(LORA).replace("{", '{"r": 4, ', 1)),
        "'r' occurs twice",
    ),
    "an unknown method": (with_config(peft_type="ADALORA"), "peft_type is 'ADALORA', and LORA, VERA, IA3"),
    "no method": (with_config(peft_type=None), "peft_type is None"),
    "another method": (with_config(peft_type="IA3"), "bias is 'none', which is not known to leave the numbers"),
    "another method's tensors": (
        lambda folder: write_config(folder, COMMON | {"peft_type": "VERA", "r": 2, "target_modules": ["first"]}),
        "there is no tensor for first, which target_modules names",
    ),
    "a later feature": (with_config(new_config={"x": 1}), "new_config is {'x': 1}, which is not known"),
    "a bias in the branch": (with_config(lora_bias=True), "lora_bias is True, which is not known"),
    "tokens too": (with_config(trainable_token_indices=[1]), r"trainable_token_indices is \[1\], which is not known"),
    "replicated layers": (with_config(layer_replication=[[0, 1]]), "layer_replication is .* which is not known"),
    "a changed base": (with_config(init_lora_weights="olora"), "'olora', which has changed the base too"),
    "a missing factor": (without("second.lora_B.weight"), "second.lora_B.weight is missing"),
    "a missing layer": (
        without("second.lora_A.weight", "second.lora_B.weight"),
        "there is no tensor for second, which target_modules names",
    ),
    "a layer too many": (
        having("norm.lora_A.weight", np.ones((2, 8), np.float32)),
        "there are tensors for norm, which the network has not",
    ),
    "a layer that is not named": (
        with_config(target_modules=["first"]),
        "there are tensors for second, which target_modules does not name",
    ),
    "a wrong name": (with_config(target_modules=["first", "third"]), "second, which target_modules does not name"),
    "a pattern for more": (with_config(target_modules="first|second|head", modules_to_save=None), "no tensor for head"),
    "no names": (with_config(target_modules=None), "target_modules names nothing"),
    "names of a wrong kind": (with_config(target_modules=[1]), r"target_modules is \[1\], and a list of names"),
    "no regular expression": (with_config(target_modules="first|("), "which is no regular expression"),
    "a renamed tensor": (renamed("lora_A", "lora_C"), r"lora_A.weight is missing"),
    "another network's names": (renamed("first", "start"), "no tensor for first"),
    "an unknown tensor": (having("first.extra", np.ones(3, np.float32)), "first.extra belongs"),
    "an adapter's name in the names": (renamed("lora_A.weight", "lora_A.default.weight"), "no tensor|is missing"),
    "a name that is left in": (
        having("first.lora_A.default.weight", np.ones((2, 6), np.float32)),
        "has an adapter's name in it",
    ),
    "no prefix": (without_prefix, "no tensor for first"),
    "one without a prefix": (
        lambda folder: save_file(load_file(folder / TENSORS) | {"x.weight": np.ones(2, np.float32)}, folder / TENSORS),
        "x.weight does not begin with base_model.model.",
    ),
    "swapped factors": (with_tensors(swapped), r"first.lora_A.weight is \[8, 2\], and .* ask for \[2, 6\]"),
    "another rank": (with_config(r=4), r"first.lora_A.weight is \[2, 6\], and .* ask for \[4, 6\]"),
    "another rank of a layer": (with_config(rank_pattern={"second": 3}), r"second.lora_A.weight is \[2, 8\]"),
    "a wrong shape": (reshaped("second.lora_B.weight", (6, 2)), r"second.lora_B.weight is \[6, 2\]"),
    "an axis too many": (reshaped("second.lora_B.weight", (5, 2, 1)), r"second.lora_B.weight is \[5, 2, 1\]"),
    "a head of another size": (reshaped("head.weight", (4, 5)), r"head.weight is \[4, 5\], and the network has"),
    "NaN": (having("head.bias", NAN), "head.bias holds NaN or infinite numbers"),
    "an infinite number": (having("head.bias", INF), "head.bias holds NaN or infinite numbers"),
    "whole numbers": (having("head.bias", np.ones(3, np.int32)), "head.bias is int32"),
    "float64": (having("head.bias", np.ones(3)), "head.bias is float64"),
    "rank zero": (with_config(r=0), "r: Input should be greater than 0"),
    "a negative rank": (with_config(r=-2), "r: Input should be greater than 0"),
    "a rank that is no whole number": (with_config(r=2.5), "r: Input should be a valid integer"),
    "an infinite scale": (with_config(lora_alpha=float("inf")), "lora_alpha: Input should be a finite number"),
    "a scale that is no number": (with_config(lora_alpha=float("nan")), "lora_alpha: Input should be"),
    "a negative scale": (with_config(lora_alpha=-6), "lora_alpha: Input should be greater than 0"),
    "no scale": (with_config(lora_alpha=None), "lora_alpha: Input should be a valid number"),
    "a scale of a layer that is no number": (with_config(alpha_pattern={"first": "x"}), "alpha_pattern.first"),
    "a switch that is no switch": (with_config(use_rslora="yes"), "use_rslora: Input should be a valid boolean"),
    "a pattern of a wrong kind": (with_config(rank_pattern=[3]), r"rank_pattern is \[3\]"),
    "a pattern that is none": (with_config(rank_pattern={"(": 3}), "key that is no regular expression"),
    "DoRA without magnitudes": (with_config(use_dora=True), "first.lora_magnitude_vector is missing"),
    "magnitudes without DoRA": (with_tensors(lambda held: held | MAGNITUDES), "first.lora_magnitude_vector belongs"),
    "a lost head": (without("head.weight", "head.bias"), "head.weight is missing, which modules_to_save"),
    "half a head": (without("head.bias"), "head.bias is missing, which modules_to_save"),
    "a head that is not named": (
        with_config(modules_to_save=None),
        "head.bias belongs to nothing .* and is no copy of the",
    ),
    "a module that the network has not": (with_config(modules_to_save=["head", "tail"]), "names 'tail', which the"),
    "lost biases": (with_config(bias="lora_only"), "first.base_layer.bias is missing"),
    "biases of a wrong kind": (with_config(bias="some"), "bias: Input should be 'none'"),
    "layers by text": (with_config(layers_to_transform="1"), "layers_to_transform is '1'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_refused_with_its_reason_and_changes_nothing(folder, name):
    damage, reason = DAMAGES[name]
    damage(folder)
    network = Stack()
    before = snapshot(network)
    with pytest.raises(InputError, match=reason):
        mindpet.load_adapter(network, folder)
    assert snapshot(network) == before


def test_there_are_more_than_25_kinds_of_damage():
    assert len(DAMAGES) > 70


def test_the_same_folder_loads_when_nothing_is_wrong_with_it(folder):
    network = load(Stack(), folder)
    held = load_file(folder / TENSORS)
    np.testing.assert_array_equal(network.first.mindpet_delta_lora_a.asnumpy(), held[START + "first.lora_A.weight"])
    np.testing.assert_array_equal(network.head.bias.asnumpy(), held[START + "head.bias"])
    assert float(network.first.scaling.asnumpy()) == 3


def test_a_folder_loads_into_an_attached_network_too(folder):
    plain, attached = load(Stack(), folder), load(trained(Stack(), lora(), seed=2), folder)
    assert adapter_values(attached) == adapter_values(plain)
    np.testing.assert_array_equal(outputs(attached), outputs(plain))


def test_a_link_to_the_tensors_is_followed_as_in_a_cache_of_the_hub(folder, tmp_path):
    blob = tmp_path / "blob"
    shutil.move(folder / TENSORS, blob)
    (folder / TENSORS).symlink_to(blob)
    (tmp_path / "snapshot").symlink_to(folder)
    assert adapter_values(load(Stack(), tmp_path / "snapshot"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_widened_as_peft_does(folder, dtype):
    import ml_dtypes

    half = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    tensors = {name: value.astype(half) for name, value in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    network = load(Stack(), folder)
    wanted = tensors[START + "first.lora_A.weight"].astype(np.float32)
    np.testing.assert_array_equal(network.first.mindpet_delta_lora_a.asnumpy(), wanted)


IA3 = COMMON | {
    "peft_type": "IA3",
    "target_modules": ["first", "second"],
    "feedforward_modules": ["second"],
    "init_ia3_weights": True,
    "modules_to_save": None,
}
VERA = COMMON | {
    "peft_type": "VERA",
    "r": 2,
    "bias": "none",
    "d_initial": 0.1,
    "projection_prng_key": 0,
    "save_projection": False,
    "target_modules": ["first"],
    "vera_dropout": 0.0,
}
TOKENS = COMMON | {"peft_type": "TRAINABLE_TOKENS", "target_modules": ["0"], "token_indices": [3, 1]}
PREFIX = COMMON | {
    "peft_type": "PREFIX_TUNING",
    "num_virtual_tokens": 2,
    "num_layers": 1,
    "num_attention_heads": 3,
    "token_dim": 12,
    "num_transformer_submodules": 1,
    "encoder_hidden_size": 12,
    "prefix_projection": False,
    "modules_to_save": None,
}
PROMPT = {"prompt_embeddings": np.ones((2, 24), np.float32)}
PAIR = {"base_model.vera_A": np.ones((2, 6), np.float32), "base_model.vera_B": np.ones((8, 2), np.float32)}


def bert(tmp_path):
    from mindpet.models.bert import BertForSequenceClassification
    from tests.tiny import write_bert

    return BertForSequenceClassification.from_pretrained(write_bert(tmp_path / "bert"), num_labels=2)


def table(tmp_path):
    return nn.SequentialCell(nn.Embedding(7, 4, embedding_table="zeros"))


def tied(tmp_path):
    return GPT2LMHeadModel(GPT2Config(vocab_size=7, n_positions=4, n_embd=4, n_layer=1, n_head=1))


def stack(tmp_path):
    return Stack()


SCALES = numbers({"first.ia3_l": (8, 1), "second.ia3_l": (1, 8)})
VECTORS = numbers({"first.vera_lambda_b": (8,), "first.vera_lambda_d": (2,)})
ROWS = numbers({"0.trainable_tokens_delta": (2, 4)})
TIED_ROWS = numbers({"transformer.wte.trainable_tokens_delta": (2, 4), "lm_head.trainable_tokens_delta": (2, 4)})
BAD_METHODS = {
    "IA3 without its inner layers": (
        stack,
        IA3 | {"feedforward_modules": None},
        SCALES,
        "feedforward_modules is missing",
    ),
    "IA3 with other inner layers": (stack, IA3 | {"feedforward_modules": []}, SCALES, r"second.ia3_l is \[1, 8\]"),
    "IA3 with a vector too long": (
        stack,
        IA3,
        SCALES | {START + "first.ia3_l": np.ones((9, 1), np.float32)},
        r"first.ia3_l is \[9, 1\], and configuration and network ask for \[8, 1\]",
    ),
    "VeRA with a lost vector": (stack, VERA, numbers({"first.vera_lambda_b": (8,)}), "vera_lambda_d is missing"),
    "VeRA of another rank": (stack, VERA | {"r": 3}, VECTORS, r"vera_lambda_d is \[2\]"),
    "VeRA with a lost pair": (stack, VERA | {"save_projection": True}, VECTORS, "base_model.vera_A is missing"),
    "VeRA with another pair": (stack, VERA, VECTORS | PAIR, "vera_A is not what projection_prng_key 0 gives"),
    "VeRA with a bias": (stack, VERA | {"bias": "all"}, VECTORS, "bias is 'all', and 'none' can be read"),
    "VeRA with a seed below zero": (stack, VERA | {"projection_prng_key": -1}, VECTORS, "projection_prng_key: Input"),
    "tokens that the table has not": (
        table,
        TOKENS | {"token_indices": [3, 9]},
        ROWS,
        "`token_indices` is a list with 9",
    ),
    "a token twice": (table, TOKENS | {"token_indices": [3, 3]}, ROWS, "`token_indices` is a list with 3 twice"),
    "more tokens than rows": (table, TOKENS | {"token_indices": [3, 1, 2]}, ROWS, r"delta is \[2, 4\]"),
    "other tokens of a tied head": (
        tied,
        TOKENS | {"target_modules": ["wte"]},
        TIED_ROWS,
        r"lm_head.trainable_tokens_delta is not what base_model.model.transformer.wte.trainable_tokens_delta has",
    ),
    "no prompt": (bert, PREFIX, {"base_model.x": np.ones(1, np.float32)}, "prompt_embeddings is missing"),
    "a prompt of other tokens": (bert, PREFIX | {"num_virtual_tokens": 3}, PROMPT, r"prompt_embeddings is \[2, 24\]"),
    "a prompt for more layers": (bert, PREFIX | {"num_layers": 2}, PROMPT, "it is for 2 layers"),
    "a prompt for other heads": (bert, PREFIX | {"num_attention_heads": 4}, PROMPT, "it is for 1 layers"),
    "a prompt without tokens": (bert, PREFIX | {"num_virtual_tokens": 0}, PROMPT, "num_virtual_tokens is 0"),
    "a prompt for a network that takes none": (stack, PREFIX, PROMPT, "no attention of Stack takes a prefix"),
    "a prompt with a lost head": (
        bert,
        PREFIX | {"modules_to_save": ["classifier"]},
        PROMPT,
        "classifier.weight is missing",
    ),
    "a prompt with another tensor": (bert, PREFIX, PROMPT | {"extra": np.ones(1, np.float32)}, "extra belongs"),
}


@pytest.mark.parametrize("name", BAD_METHODS)
def test_a_damaged_folder_of_another_method_is_refused(tmp_path, name):
    make, config, tensors, reason = BAD_METHODS[name]
    network = make(tmp_path)
    before = snapshot(network)
    with pytest.raises(InputError, match=reason):
        mindpet.load_adapter(network, write(tmp_path / "peft", config, tensors))
    assert snapshot(network) == before


def test_the_folders_of_the_other_methods_load_when_nothing_is_wrong(tmp_path):
    ia3 = load(Stack(), write(tmp_path / "ia3", IA3, SCALES))
    np.testing.assert_array_equal(ia3.second.mindpet_delta_ia3_scale.asnumpy(), SCALES[START + "second.ia3_l"][0])
    assert ia3.second.feedforward and not ia3.first.feedforward
    vera = load(Stack(), write(tmp_path / "vera", VERA, VECTORS))
    np.testing.assert_array_equal(
        vera.first.mindpet_delta_vera_lambda_d.asnumpy(), VECTORS[START + "first.vera_lambda_d"]
    )
    tokens = load(table(tmp_path), write(tmp_path / "tokens", TOKENS, ROWS))
    found = tokens(Tensor(np.array([[1, 2, 3]], np.int32))).asnumpy()[0]
    np.testing.assert_array_equal(found[[2, 0]], ROWS[START + "0.trainable_tokens_delta"])
    assert not found[1].any()
    prefix = load(bert(tmp_path), write(tmp_path / "prefix", PREFIX, PROMPT))
    assert (prefix.mindpet_prefix_encoder.mindpet_delta_ptuning2_embedding.embedding_table.asnumpy() == 1).all()


def test_lora_on_an_embedding_loads(tmp_path):
    tensors = numbers({"0.lora_embedding_A": (2, 7), "0.lora_embedding_B": (4, 2)})
    config = LORA | {"target_modules": ["0"], "modules_to_save": None, "use_rslora": True}
    network = load(table(tmp_path), write(tmp_path / "peft", config, tensors))
    a, b = tensors.values()
    found = network(Tensor(np.array([[3]], np.int32))).asnumpy()[0, 0]
    np.testing.assert_allclose(found, 6 / 2**0.5 * b @ a[:, 3], rtol=1e-5)


def test_another_form_of_names_finds_the_same_layers(tmp_path):
    for number, changes in enumerate(
        (
            {"target_modules": "all-linear"},
            {"target_modules": "first|second"},
            {"target_modules": r"\w+", "exclude_modules": ["norm"]},
            {"target_modules": ["first", "second"], "rank_pattern": {"nowhere": 5}, "layers_to_transform": [7]},
        )
    ):
        folder = write(tmp_path / f"peft{number}", LORA | changes, numbers(SHAPES))
        assert re.search("lora_b", " ".join(adapter_values(load(Stack(), folder))))
