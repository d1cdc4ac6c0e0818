import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from mindpet.data.batches import length_buckets
from mindpet.data.chat import ChatTemplate, Message, load_chat_template
from mindpet.data.language import LanguageBatches, TokenSequences, encode, encode_prompt
from mindpet.data.language_data import Conversation, Passage
from mindpet.data.packing import pack
from mindpet.data.tokenizer import load_tokenizer
from mindpet.utils.exceptions import InputError
from tests.data.tiny_tokenizers import CHATML, KINDS, byte_level, glm2, llama2, write_tokenizer

ROLES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    backend = byte_level(split=pre_tokenizers.Digits(individual_digits=True))
    return write_tokenizer(tmp_path_factory.mktemp("model"), backend, chat_template=CHATML, **ROLES)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def template(folder):
    return load_chat_template(folder)


def talk(*contents, system=None, place="talks.jsonl, line 1"):
    turns = [Message(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return Conversation((*([Message("system", system)] if system else []), *turns), place)


def targets(sequences, tokenizer, row=0):
    """Return what the labels of a row say, as text, one text for each run of targets."""
    runs, previous = [], -1
    for place in np.flatnonzero(sequences.labels[row] >= 0):
        if place != previous + 1:
            runs.append([])
        runs[-1].append(int(sequences.labels[row][place]))
        previous = place
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def test_every_answer_is_a_target_and_nothing_else(tokenizer, template):
    sequences = encode([talk("Hi 12?", "Yes 3 😀.", "And?", " No")], tokenizer, template)
    assert targets(sequences, tokenizer) == ["Yes 3 😀.<|im_end|>", " No<|im_end|>"]
    (ids,), (labels,) = sequences.input_ids, sequences.labels
    assert ids.dtype == labels.dtype == np.int32
    assert labels[-1] == -1
    shown = np.flatnonzero(labels >= 0)
    np.testing.assert_array_equal(labels[shown], ids[shown + 1])
    assert sequences.target_count == len(shown)
    assert (sequences.shortened_prompts, sequences.shortened_targets) == (0, 0)


def test_the_tokens_before_an_answer_are_those_of_generation(tokenizer, template):
    conversation = talk("Hi", "Yes", "And?", "No", system="Be brief.")
    (ids,) = encode([conversation], tokenizer, template).input_ids
    for turn in (2, 4):
        prompt = encode_prompt(conversation.messages[:turn], tokenizer, template)
        np.testing.assert_array_equal(ids[: len(prompt)], prompt)


def test_all_of_a_passage_but_its_first_token_is_a_target(tokenizer, template):
    sequences = encode([Passage("北京 is big", "x"), Passage("done<|im_end|>", "y")], tokenizer, template)
    ids = tokenizer.tokenize("北京 is big").ids.tolist()
    assert sequences.input_ids[0].tolist() == [*ids, tokenizer.eos_id]
    assert sequences.labels[0].tolist() == [*ids[1:], tokenizer.eos_id, -1]
    assert sequences.input_ids[1].tolist().count(tokenizer.eos_id) == 1


def test_an_end_that_the_tokenizer_adds_is_a_target_too(tmp_path, template):
    folder = llama2(tmp_path / "model")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_eos_token": True}))
    sequences = encode([Passage("hi you", "x")], load_tokenizer(folder), template)
    assert sequences.input_ids[0][[0, -1]].tolist() == [1, 2]
    np.testing.assert_array_equal(sequences.labels[0][:-1], sequences.input_ids[0][1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ["Yes", " leading", "\nlines", "  two", "😀", "一二"])
def test_no_character_of_an_answer_is_lost_whatever_the_tokenizer_merges(tmp_path, kind, answer):
    tokenizer = load_tokenizer(kind(tmp_path / "model"))
    template = ChatTemplate("{{ messages[0].content }}{{ messages[1].content if messages[1:] }}", {}, "model")
    sequences = encode([talk("go\n ->", answer)], tokenizer, template)
    found = "".join(targets(sequences, tokenizer)).strip().removesuffix("</s>")
    assert answer.strip() in found
    assert "go" not in found


def test_chatglm2_learns_answers_and_the_end_of_the_last_one(tmp_path):
    tokenizer, template = load_tokenizer(glm2(tmp_path)), load_chat_template(tmp_path)
    conversation = talk("你好", "美 lines", "you", "😀 so")
    sequences = encode([conversation], tokenizer, template)
    (ids,) = sequences.input_ids
    assert ids[-1] == tokenizer.eos_id == sequences.labels[0][-2]
    assert [text.strip() for text in targets(sequences, tokenizer)] == ["美 lines", "😀 so"]
    prompt = encode_prompt(conversation.messages[:3], tokenizer, template)
    assert prompt[0] == tokenizer.vocab_size - 4
    np.testing.assert_array_equal(ids[: len(prompt)], prompt)


def test_a_long_prompt_loses_its_end_and_the_answer_stays(tokenizer, template):
    question = "Sum up: " + "one two three " * 30
    whole = encode([talk(question, "Numbers.")], tokenizer, template)
    for length in range(60, whole.lengths[0]):
        cut = encode([talk(question, "Numbers.")], tokenizer, template, length)
        assert cut.lengths[0] <= length
        assert cut.lengths[0] > length - 4  # a token at the new end may be another one
        assert targets(cut, tokenizer) == ["Numbers.<|im_end|>"]
        text = tokenizer.decode(cut.input_ids[0], skip_special_tokens=False)
        assert "user\nSum up: one" in text and "<|im_end|>\n<|im_start|>assistant\nNumbers." in text
        assert (cut.shortened_prompts, cut.shortened_targets) == (1, 0)
    for length in range(60, 70):
        prompt = encode_prompt([Message("user", question)], tokenizer, template, length)
        assert length - 4 < len(prompt) <= length
        text = tokenizer.decode(prompt, skip_special_tokens=False)
        assert "user\nSum up: one" in text and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert len(encode_prompt([Message("user", "12")], tokenizer, template, 2)) > 2  # what cannot be shortened


def test_a_prompt_of_characters_in_several_tokens_is_cut_between_them(tokenizer, template):
    whole = encode([talk("😀" * 20, "Yes")], tokenizer, template)
    for length in range(whole.lengths[0] - 9, whole.lengths[0]):
        cut = encode([talk("😀" * 20, "Yes")], tokenizer, template, length)
        assert length - 4 < cut.lengths[0] <= length
        assert "\ufffd" not in tokenizer.decode(cut.input_ids[0])


def test_the_longest_message_is_cut_and_never_an_answer(tokenizer, template):
    conversation = talk("short", "answer " * 8, "long " * 40, "end", system="Be brief.")
    cut = encode([conversation], tokenizer, template, 110)
    text = tokenizer.decode(cut.input_ids[0], skip_special_tokens=False)
    assert "Be brief.<|im_end|>" in text and "user\nshort<|im_end|>" in text and "answer " * 8 in text
    assert targets(cut, tokenizer)[1] == "end<|im_end|>"


def test_an_answer_or_passage_that_is_too_long_loses_its_end(tokenizer, template):
    cut = encode([talk("Go", "word " * 80), Passage("word " * 80, "x"), Passage("a b", "y")], tokenizer, template, 70)
    assert cut.lengths[:2] == [70, 70]
    assert (cut.shortened_prompts, cut.shortened_targets) == (1, 2)
    assert cut.labels[1][-1] == -1 and (cut.labels[1][:-1] >= 0).all()


def test_a_passage_to_be_packed_stays_whole(tokenizer, template):
    examples = [talk("Go", "word " * 80), Passage("word " * 80, "x")]
    kept = encode(examples, tokenizer, template, 70, cut_passages=False)
    assert kept.lengths == [70, encode(examples, tokenizer, template).lengths[1]]
    assert kept.shortened_targets == 1
    packed = pack(kept, 70)
    assert max(packed.lengths) == 70 and packed.target_count == kept.target_count


@pytest.mark.parametrize(
    ("example", "max_length", "message"),
    [
        (talk("Hi", "Yes"), 20, "talks.jsonl, line 1: none of the answer has room in 20 tokens"),
        (Passage("<|im_end|>", "texts.csv, line 3"), None, "texts.csv, line 3: there is nothing to learn"),
    ],
)
def test_an_example_without_a_target_is_refused_by_line(tokenizer, template, example, max_length, message):
    with pytest.raises(InputError, match=message):
        encode([example], tokenizer, template, max_length)


def test_a_refusal_of_the_template_names_the_line(tokenizer):
    template = ChatTemplate("{{ raise_exception('never') }}", {}, "model")
    with pytest.raises(InputError, match=r"talks.jsonl, line 1: model: the chat template refuses .*never"):
        encode([talk("Hi", "Yes")], tokenizer, template)


# Batches and packing


def make_sequences(lengths):
    """Sequences whose tokens are all different, with every second label a target."""
    total = np.cumsum([0, *lengths])
    ids = [np.arange(begin, end, dtype=np.int32) for begin, end in pairwise(total)]
    labels = [np.where(np.arange(len(row)) % 2, row + 1, -1).astype(np.int32) for row in ids]
    return TokenSequences(tuple(ids), tuple(labels), 3, 4)


lengths_of_sequences = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(lengths=lengths_of_sequences, batch_size=st.integers(1, 9), seed=st.integers(0, 99), number=st.integers(0, 9))
def test_an_epoch_has_every_example_once_with_its_targets(lengths, batch_size, seed, number):
    sequences = make_sequences(lengths)
    widths = length_buckets(lengths, max(lengths), batch_size)
    batches = LanguageBatches(sequences, batch_size, widths, pad_id=7, seed=seed)
    seen, positions = [], 0
    for batch in batches.epoch(number):
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape
        assert batch.input_ids.shape in batches.shapes
        positions += batch.input_ids.size
        for ids, mask, labels, index in zip(*batch, strict=True):
            length = mask.sum()
            assert mask[:length].all() and (ids[length:] == 7).all() and (labels[length:] == -1).all()
            if index < 0:
                assert (labels == -1).all() and length > 0
                continue
            seen.append(int(index))
            np.testing.assert_array_equal(ids[:length], sequences.input_ids[index])
            np.testing.assert_array_equal(labels[:length], sequences.labels[index])
    assert sorted(seen) == list(range(len(lengths)))
    assert batches.padding_share == pytest.approx(1 - sum(lengths) / positions)


def test_the_types_and_shapes_are_those_of_a_step():
    batch = next(LanguageBatches(make_sequences([3, 5, 5]), 4, (5,), pad_id=0).epoch(0))
    assert {name: (values.dtype.name, values.shape) for name, values in batch._asdict().items()} == {
        "input_ids": ("int32", (4, 5)),
        "attention_mask": ("int32", (4, 5)),
        "labels": ("int32", (4, 5)),
        "indices": ("int64", (4,)),
    }


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=80), width=st.integers(1, 40))
def test_packing_keeps_every_token_and_cuts_only_what_is_longer_than_a_row(lengths, width):
    sequences = make_sequences(lengths)
    packed = pack(sequences, width)
    ids, labels = np.concatenate(packed.input_ids), np.concatenate(packed.labels)
    order = np.argsort(ids)
    np.testing.assert_array_equal(ids[order], np.concatenate(sequences.input_ids))
    np.testing.assert_array_equal(labels[order], np.concatenate(sequences.labels))
    assert max(packed.lengths) <= width
    row_of = {int(token): row for row, tokens in enumerate(packed.input_ids) for token in tokens}
    for tokens in sequences.input_ids:
        assert len(tokens) > width or len({row_of[int(token)] for token in tokens}) == 1
    assert (packed.shortened_prompts, packed.shortened_targets) == (3, 4)
    fullest_pairs = sorted(packed.lengths)[:2]
    assert len(packed) == 1 or sum(fullest_pairs) > width  # no two rows could have been one


def test_packing_pads_less_than_buckets():
    lengths = np.random.default_rng(0).integers(5, 120, size=1000).tolist()
    sequences = make_sequences(lengths)
    bucketed = LanguageBatches(sequences, 4, length_buckets(lengths, 120, 4), pad_id=0)
    packed = LanguageBatches(pack(sequences, 240), 4, (240,), pad_id=0)
    assert packed.padding_share < 0.02 < 0.1 < bucketed.padding_share


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: pack(make_sequences([3]), 0), "width is 0"),
        (lambda: LanguageBatches(TokenSequences((), ()), 2, (4,), 0), "LanguageBatches got no texts"),
        (lambda: LanguageBatches(make_sequences([9]), 2, (4,), 0), "a text of 9 tokens; the widest batch has 4"),
    ],
)
def test_bad_arguments_are_refused_at_once(act, message):
    with pytest.raises(ValueError, match=message):
        act()
