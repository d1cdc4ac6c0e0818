"""Generation: the cache gives what computing everything again gives, and tokens are chosen as documented."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, mutable

import mindpet
from mindpet.models.auto import load_causal_lm
from mindpet.models.generation import Sampling, generate
from mindpet.utils.exceptions import InputError
from tests.models.numpy_language import GLM, GPT2, random_batch, write_folder

SHALLOW = GPT2 | {"n_layer": 1}


def prompts(batch=3, length=5):
    """Texts with padding on the left."""
    input_ids, attention_mask = random_batch(batch, length)
    attention_mask[1:] = 1
    return input_ids, attention_mask


def recompute(net, input_ids, attention_mask, count):
    """The likeliest tokens, with everything computed again for each of them."""
    net.set_train(False)
    for _ in range(count):
        # Padding on the right keeps the length, and so the graph.
        padding = ((0, 0), (0, prompts()[0].shape[1] + count - input_ids.shape[1]))
        inputs = (Tensor(np.pad(array, padding).astype(np.int32)) for array in (input_ids, attention_mask))
        best = net(*inputs).asnumpy()[:, input_ids.shape[1] - 1].argmax(-1)
        input_ids = np.concatenate([input_ids, best[:, None]], 1)
        attention_mask = np.concatenate([attention_mask, np.ones((len(best), 1), np.int32)], 1)
    return input_ids[:, -count:]


def test_a_cache_changes_no_logits(tmp_path, mode):
    check_cache(load_causal_lm(write_folder(tmp_path, GLM)), ((5, 6), (6, 7)))


def test_several_tokens_may_follow_at_once(net):
    check_cache(net, ((5, 6), (6, 7), (7, 9)))


def check_cache(net, parts):
    net.set_train(False)
    input_ids, attention_mask = prompts(length=9)
    whole = net(Tensor(input_ids), Tensor(attention_mask)).asnumpy()
    logits, past = net(Tensor(input_ids[:, :5]), Tensor(attention_mask[:, :5]), room=6)
    np.testing.assert_allclose(logits.asnumpy()[:, 0], whole[:, 4], rtol=0, atol=1e-5)
    for start, stop in parts:
        later = (Tensor(array[:, start:stop]) for array in (input_ids, attention_mask))
        logits, past = net(*later, mutable(past))
        assert past[0][0][0].shape == (3, 11, 12)
        np.testing.assert_allclose(logits.asnumpy()[:, 0], whole[:, stop - 1], rtol=0, atol=1e-5)


def test_the_likeliest_tokens(net):
    expected = recompute(net, *prompts(), 4)
    net.set_train()
    tokens = generate(net, *prompts(), 4)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, expected)
    assert net.training
    net.set_train(False)


def attach(net, config):
    """Attach an adapter and give it values that count."""
    mindpet.get_peft_model(net, config)
    rng = np.random.default_rng(0)
    for parameter in net.trainable_params():
        parameter.set_data(Tensor(rng.normal(size=parameter.shape).astype(np.float32)))


def test_a_prefix_counts_at_every_step(tmp_path):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    net = load_causal_lm(write_folder(tmp_path, SHALLOW), dropout=0.0)
    before = generate(net, *prompts(), 3)
    attach(net, mindpet.PTuning2Config(num_virtual_tokens=3))
    adapted = generate(net, *prompts(), 3)
    assert not np.array_equal(adapted, before)
    np.testing.assert_array_equal(adapted, recompute(net, *prompts(), 3))
    with pytest.raises(InputError, match="at most 13"):
        generate(net, *prompts(), 10)


def test_an_adapter_counts_merged_or_not(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, SHALLOW), dropout=0.0)
    before = generate(net, *prompts(), 3)
    attach(net, mindpet.LoraConfig(r=2, lora_alpha=16, target_modules=["c_attn", "c_fc"]))
    adapted = generate(net, *prompts(), 3)
    assert not np.array_equal(adapted, before)
    np.testing.assert_array_equal(adapted, recompute(net, *prompts(), 3))
    mindpet.merge(net)
    np.testing.assert_array_equal(generate(net, *prompts(), 3), adapted)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return load_causal_lm(write_folder(tmp_path_factory.mktemp("gpt2"), SHALLOW))


def test_a_text_ends(net):
    free = generate(net, *prompts(), 4)
    end = int(free[0, 1])
    tokens = generate(net, *prompts(), 4, eos_token_ids=[end, 36])
    for row, kept in zip(tokens, free, strict=True):
        ended = np.flatnonzero(kept == end)
        length = ended[0] + 1 if len(ended) else 4
        assert row[:length].tolist() == kept[:length].tolist()
        assert (row[length:] == end).all()
    assert generate(net, *prompts(), 1, eos_token_ids={36}).shape == (3, 1)
    alone = generate(net, *(array[:1] for array in prompts()), 4, eos_token_ids=end)
    assert alone.tolist() == [free[0, : free[0].tolist().index(end) + 1].tolist()]


def test_chance_follows_the_seed(net):
    drawn = [generate(net, *prompts(), 2, temperature=5.0, seed=seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    likely = generate(net, *prompts(), 2, temperature=1e-4, top_k=30, top_p=0.9)
    np.testing.assert_array_equal(likely, generate(net, *prompts(), 2))


def test_padding_of_a_whole_batch_is_dropped(net):
    padded = [np.pad(array, ((0, 0), (40, 0))) for array in prompts()]
    np.testing.assert_array_equal(generate(net, *padded, 2), generate(net, *prompts(), 2))


LOGITS = np.log([[0.1, 0.4, 0.2, 0.2, 0.1], [0.5, 0.05, 0.15, 0.2, 0.1]])


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, np.exp(LOGITS)),
        ({"temperature": 0.5}, np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum(-1, keepdims=True)),
        # The third of the first row is as likely as the second.
        ({"top_k": 2}, [[0, 0.5, 0.25, 0.25, 0], [5 / 7, 0, 0, 2 / 7, 0]]),
        ({"top_p": 0.65}, [[0, 0.5, 0.25, 0.25, 0], [5 / 7, 0, 0, 2 / 7, 0]]),
        ({"top_p": 1e-9}, [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
        ({"top_k": 9, "top_p": 1.0}, np.exp(LOGITS)),
        # Top-p counts what top-k has left.
        ({"top_k": 3, "top_p": 0.55}, [[0, 2 / 3, 1 / 3, 0, 0], [1, 0, 0, 0, 0]]),
    ],
)
def test_probabilities(sampling, expected):
    found = Sampling(**{"temperature": 1.0} | sampling).probabilities(LOGITS)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_draws_follow_the_probabilities():
    rows = np.repeat(LOGITS[:1], 20000, 0)
    tokens = Sampling(temperature=1.0, top_k=3).choose(rows, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / 20000, [0, 0.5, 0.25, 0.25, 0], atol=0.015)


IDS, MASK = prompts()
REFUSED = {
    "no texts": ((IDS[:0], MASK[:0], 2), {}, "input_ids are int32 of the shape"),
    "floats": ((IDS * 0.5, MASK, 2), {}, "input_ids are float64"),
    "one text without a batch": ((IDS[0], MASK[0], 2), {}, r"shape \(5,\)"),
    "another mask": ((IDS, MASK[:2], 2), {}, r"attention_mask has the shape \(2, 5\); expected is \(3, 5\)"),
    "padding on the right": ((IDS, MASK[:, ::-1], 2), {}, "pad on the left"),
    "unknown token": ((IDS + 37, MASK, 2), {}, "tokens 0 to 36"),
    "nothing to do": ((IDS, MASK, 0), {}, "max_new_tokens is 0"),
    "too long": ((IDS, MASK, 13), {}, "5 tokens and may get 13 more.*at most 16"),
    "temperature": ((IDS, MASK, 2), {"temperature": -1.0}, "temperature is -1.0"),
    "top_k": ((IDS, MASK, 2), {"temperature": 1.0, "top_k": 0}, "top_k is 0"),
    "top_p": ((IDS, MASK, 2), {"temperature": 1.0, "top_p": 1.5}, "top_p is 1.5"),
    "seed": ((IDS, MASK, 2), {"seed": -1}, "seed is -1"),
    "a temperature in words": ((IDS, MASK, 2), {"temperature": "1"}, "temperature is '1'; expected is 0, which"),
    "no temperature": ((IDS, MASK, 2), {"temperature": float("nan")}, "temperature is nan"),
    "almost no temperature": ((IDS, MASK, 2), {"temperature": 1e-320}, "is 1e-320.*finite number from 1e-06: correct"),
    "half a token": ((IDS, MASK, 2), {"temperature": 1.0, "top_k": 2.5}, "top_k is 2.5; expected is None or an int"),
    "true tokens": ((IDS, MASK, 2), {"temperature": 1.0, "top_k": True}, "top_k is True"),
    "top_p of the wrong type": ((IDS, MASK, 2), {"temperature": 1.0, "top_p": [0.5]}, r"top_p is \[0.5\]"),
    "half a seed": ((IDS, MASK, 2), {"seed": 1.5}, "seed is 1.5; expected is an integer from 0"),
    "unknown end": ((IDS, MASK, 2), {"eos_token_ids": 37}, "eos_token_ids is 37; .* 0 to 36: give the tokens"),
    "unknown ends": ((IDS, MASK, 2), {"eos_token_ids": [3, -1]}, r"eos_token_ids is \[3, -1\]"),
    "an end in words": ((IDS, MASK, 2), {"eos_token_ids": "2"}, "eos_token_ids is '2'"),
    "half an end": ((IDS, MASK, 2), {"eos_token_ids": 2.5}, "eos_token_ids is 2.5"),
    "chance without temperature": ((IDS, MASK, 2), {"top_k": 5}, "temperature is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_are_refused(net, case):
    arguments, options, reason = REFUSED[case]
    with pytest.raises(InputError, match=reason):
        generate(net, *arguments, **options)


def test_a_text_may_fill_all_positions(net):
    assert generate(net, IDS, MASK, 12).shape == (3, 12)
