import json

import numpy as np
import pytest
import sentencepiece

from mindpet.data.tokenizer import load_tokenizer
from mindpet.utils.exceptions import InputError
from tests.data.tiny_tokenizers import KINDS, TEXTS, glm2, gpt2, gpt2_files, llama2, llama3, qwen2, smollm


@pytest.mark.parametrize(
    ("kind", "bos", "eos", "pad"),
    [
        (gpt2, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        (gpt2_files, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        (llama2, "<s>", "</s>", "</s>"),
        (llama3, "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>"),
        (qwen2, None, "<|im_end|>", "<|endoftext|>"),
        (smollm, "<|im_start|>", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_the_tokens_that_begin_end_and_fill_are_those_of_the_folder(tmp_path, kind, bos, eos, pad):
    tokenizer = load_tokenizer(kind(tmp_path / "model"))
    named = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    texts = [None if number is None else tokenizer.decode([number], skip_special_tokens=False) for number in named]
    assert texts == [bos, eos, pad]


@pytest.mark.parametrize("kind", [gpt2, gpt2_files, llama3, qwen2, smollm])
def test_decoding_gives_the_text_back(tmp_path, kind):
    tokenizer = load_tokenizer(kind(tmp_path / "model"))
    for text in TEXTS:
        if "<|" not in text:
            assert tokenizer.decode(tokenizer.tokenize(text).ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_the_places_of_tokens_lie_in_the_text_in_order(tmp_path, kind):
    tokenizer = load_tokenizer(kind(tmp_path / "model"))
    for text in TEXTS:
        ids, spans = tokenizer.tokenize(text, add_special_tokens=False)
        assert ids.dtype == spans.dtype == np.int32 and spans.shape == (len(ids), 2)
        assert (np.diff(spans[:, 1]) >= 0).all() and (spans[:, 0] <= spans[:, 1]).all()
        assert len(ids) == 0 or spans[-1, 1] == len(text)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_added_on_demand_and_kept_when_a_text_is_cut(tmp_path, kind):
    tokenizer = load_tokenizer(kind(tmp_path / "model"))
    plain, added = (tokenizer.tokenize(TEXTS[0], add_special_tokens=add).ids for add in (False, True))
    extra = [tokenizer.bos_id] if kind in (llama2, llama3) else []
    assert added.tolist() == [*extra, *plain]
    np.testing.assert_array_equal(tokenizer.encode([TEXTS[0]], 5)[0], added[:5])
    np.testing.assert_array_equal(tokenizer.tokenize(TEXTS[0]).ids, added)


@pytest.mark.parametrize(("begin", "end"), [(True, True), (False, True), (False, False)])
def test_the_configuration_of_a_llama_decides_on_its_ends(tmp_path, begin, end):
    folder = llama2(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": begin, "add_eos_token": end}))
    ids = load_tokenizer(folder).tokenize("hi").ids.tolist()
    assert (ids[0] == 1, ids[-1] == 2) == (begin, end)


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (gpt2_files, remove("merges.txt"), "merges.txt does not exist"),
        (gpt2_files, write("merges.txt", "#version: 0.2\nno merge of these\n"), "vocab.json and merges.txt are no BPE"),
        (gpt2_files, write("vocab.json", "[]"), "vocab.json and merges.txt are no BPE"),
        (gpt2_files, write("config.json", '{"model_type": "qwen2"}'), "belongs to a Qwen2Tokenizer, of which"),
        (qwen2, write("special_tokens_map.json", "3"), "special_tokens_map.json is no JSON object"),
        (smollm, write("tokenizer_config.json", '{"pad_token": "<pad>"}'), "lacks the special token '<pad>'"),
        (smollm, write("tokenizer_config.json", '{"eos_token": 2}'), "'eos_token' is 2; expected the text of a token"),
    ],
)
def test_a_damaged_folder_is_refused_by_file(tmp_path, kind, change, message):
    folder = kind(tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


# ChatGLM2


def test_chatglm2_begins_each_text_with_two_tokens_of_its_own(tmp_path):
    tokenizer = load_tokenizer(glm2(tmp_path))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    size = library.vocab_size()
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (size + 5, 0, 1, 2)
    for text in TEXTS:
        ids = tokenizer.tokenize(text).ids
        assert ids.tolist() == [size + 1, size + 3, *library.encode(text)]
        assert tokenizer.decode(ids) == library.decode(library.encode(text))
        assert tokenizer.tokenize(text, add_special_tokens=False).ids.tolist() == library.encode(text)
    assert tokenizer.decode([size + 1, size + 3, *library.encode("hi"), size + 4], False) == "[gMASK]sophieop"
    assert tokenizer.encode(["Hello, world!"], 4)[0].tolist() == [
        size + 1,
        size + 3,
        *library.encode("Hello, world!")[:2],
    ]


def test_chatglm2_places_every_piece_of_a_character(tmp_path):
    ids, spans = load_tokenizer(glm2(tmp_path)).tokenize("a😀b", add_special_tokens=False)
    assert spans[-1].tolist() == [2, 3]
    assert sum(span == [1, 2] for span in spans.tolist()) == 4
    assert len(ids) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (write("tokenizer.model", "no model"), "tokenizer.model is no sentencepiece model"),
        (
            write("tokenizer_config.json", '{"tokenizer_class": "LlamaTokenizer"}'),
            "belongs to a LlamaTokenizer, and only",
        ),
        (write("tokenizer_config.json", "{}"), "belongs to a tokenizer of no known class, and only"),
    ],
)
def test_a_sentencepiece_model_that_cannot_be_used_is_refused(tmp_path, change, message):
    change(glm2(tmp_path))
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_equal_those_of_transformers(tmp_path, kind):
    from transformers import AutoTokenizer

    folder = kind(tmp_path / "model")
    own, peer = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert peer.is_fast
    assert (own.bos_id, own.eos_id) == (peer.bos_token_id, peer.eos_token_id)
    assert own.pad_id == (peer.eos_token_id if peer.pad_token_id is None else peer.pad_token_id)
    assert own.vocab_size == len(peer)
    for text in TEXTS:
        for add in (False, True):
            assert own.tokenize(text, add).ids.tolist() == peer(text, add_special_tokens=add)["input_ids"]
        ids = own.tokenize(text).ids
        for skip in (False, True):
            expected = peer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert own.decode(ids, skip) == expected
    cut = peer(TEXTS, truncation=True, max_length=7)["input_ids"]
    assert [ids.tolist() for ids in own.encode(TEXTS, 7)] == cut
