import json

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file

from mindpet.data.gguf_llama import write_llama_folder
from mindpet.data.tokenizer import load_tokenizer
from mindpet.storage.gguf import read_gguf
from mindpet.utils.exceptions import InputError
from tests.data import tiny_llama
from tests.data.tiny_tokenizers import TEXTS

FIELDS = tiny_llama.gguf_fields()
WEIGHTS = tiny_llama.llama_weights()
TENSORS = tiny_llama.gguf_tensors(WEIGHTS)
QUANTISED = {name: Kind.Q4_1 for name in TENSORS if "norm" not in name} | {"token_embd.weight": Kind.Q8_0}


def convert(tmp_path, fields=FIELDS, tensors=TENSORS, kinds=None, architecture="llama"):
    tiny_llama.write_gguf(tmp_path / "source" / "tiny.gguf", fields, tensors, kinds, architecture)
    folder = tmp_path / "model"
    folder.mkdir()
    write_llama_folder(tmp_path / "source", folder)
    return folder


def test_the_rows_of_query_and_key_get_back_their_order(tmp_path):
    found = load_file(convert(tmp_path) / "model.safetensors")
    assert found.keys() == WEIGHTS.keys()
    assert (TENSORS["blk.0.attn_q.weight"] != WEIGHTS["model.layers.0.self_attn.q_proj.weight"]).any()
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_the_configuration_is_that_of_a_llama(tmp_path):
    config = json.loads((convert(tmp_path) / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": len(tiny_llama.vocabulary()),
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected


def test_a_head_of_its_own_is_kept(tmp_path):
    head = np.ones_like(TENSORS["token_embd.weight"])
    folder = convert(tmp_path, tensors=TENSORS | {"output.weight": head})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")["lm_head.weight"], head)


def test_the_tokenizer_splits_digits_and_knows_the_special_tokens(tmp_path):
    tokenizer = load_tokenizer(convert(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    ids = tokenizer.tokenize("<|im_start|>2024").ids
    assert [tokenizer.decode([number], skip_special_tokens=False) for number in ids] == [
        "<|im_start|>",
        *"2024",
    ]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.tokenize(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("fields", "tensors", "architecture", "message"),
    [
        ({}, {}, "qwen2", "general.architecture is 'qwen2'; only 'llama' can be converted"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, {}, "llama", "tokenizer.ggml.pre is 'llama-bpe'; only 'smollm'"),
        ({"tokenizer.ggml.model": "llama"}, {}, "llama", "tokenizer.ggml.model is 'llama'; only 'gpt2'"),
        ({"llama.block_count": 3}, {}, "llama", "the tensor 'blk.2.attn_k.weight' is missing"),
        ({"llama.block_count": 1}, {}, "llama", "the tensor 'blk.1.attn_k.weight' has no place in a Llama"),
        ({"llama.block_count": None}, {}, "llama", "llama.block_count is None; expected a whole number"),
        ({"llama.context_length": "long"}, {}, "llama", "llama.context_length is 'long'; expected a whole number"),
        ({"llama.attention.head_count": 7}, {}, "llama", r"a weight of shape \(64, 64\) has no 7 heads"),
        ({"tokenizer.ggml.eos_token_id": 5000}, {}, "llama", "eos_token_id is 5000; there are 400 tokens"),
        ({"tokenizer.ggml.token_type": [1, 1]}, {}, "llama", "400 tokens are of 2 kinds"),
        ({"tokenizer.ggml.merges": ["no merge"]}, {}, "llama", "its tokens and merges are no BPE"),
        ({}, {"rope_freqs.weight": np.ones(8, np.float32)}, "llama", "'rope_freqs.weight' has no place in a Llama"),
    ],
)
def test_a_file_that_cannot_be_converted_is_refused(tmp_path, fields, tensors, architecture, message):
    fields = {key: value for key, value in (FIELDS | fields).items() if value is not None}
    with pytest.raises(InputError, match=message) as caught:
        convert(tmp_path, fields, TENSORS | tensors, architecture=architecture)
    assert "tiny.gguf" in str(caught.value) and "\n" not in str(caught.value)
    assert not list((tmp_path / "model").iterdir())


def test_a_folder_without_a_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 0 GGUF files; expected is one"):
        write_llama_folder(tmp_path, tmp_path)


@pytest.mark.slow
def test_quantised_weights_are_those_that_transformers_reads(tmp_path):
    from transformers import AutoModelForCausalLM

    found = load_file(convert(tmp_path, kinds=QUANTISED) / "model.safetensors")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "source", gguf_file="tiny.gguf").state_dict()
    assert found.keys() | {"lm_head.weight"} == peer.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, peer[name].numpy(), err_msg=name)
    assert len(read_gguf(tmp_path / "source" / "tiny.gguf").tensors) == len(found)
