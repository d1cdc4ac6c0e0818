"""The methods on language models: where they go, and prefixes in training and in generation."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

import mindpet
from mindpet.models.decoder import DecoderConfig, DecoderForCausalLM
from mindpet.models.generation import generate
from mindpet.models.gpt2 import GPT2Config, GPT2LMHeadModel
from mindpet.tuning.exchange.probe import has_effect
from mindpet.tuning.layers import Network
from mindpet.tuning.placements import placement_of
from mindpet.tuning.state import require_state, state_of
from mindpet.utils.exceptions import InputError
from tests.methods import CHANGES_THE_START, EVERY_METHOD, config_of, move_adapter

SIZES = {"vocab_size": 19, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "initializer_range": 0.3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "rotated": 4}
SIZES |= {"max_position_embeddings": 128}
GPT2 = {"vocab_size": 19, "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 128, "initializer_range": 0.3}
GPT2 |= {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
GLM = {"fused_gate": True, "interleaved": True, "rotated": 2, "qkv_bias": True}


def small(kind, **fields):
    """Return a language model with random weights; keys and values of a decoder have fewer heads than its queries."""
    mindspore.set_seed(1)
    if kind == "gpt2":
        network = GPT2LMHeadModel(GPT2Config(**GPT2 | fields))
    else:
        network = DecoderForCausalLM(
            DecoderConfig(kind, **SIZES | (GLM if kind in ("glm", "chatglm") else {}) | fields)
        )
    return network.set_train(False)


def _layers(kind, *names):
    return [
        f"{'transformer.h' if kind == 'gpt2' else 'model.layers'}.{number}.{name}"
        for number in (0, 1)
        for name in names
    ]


USUAL = {  # for LoRA, adapters and IA3
    "gpt2": (["attn.c_attn"], ["attn.c_proj", "mlp.c_proj"], ["attn.c_attn", "mlp.c_proj"]),
    "llama": (
        ["self_attn.q_proj", "self_attn.v_proj"],
        ["self_attn.o_proj", "mlp.down_proj"],
        ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"],
    ),
}
USUAL["glm"] = USUAL["chatglm"] = USUAL["llama"]
USUAL["qwen2"] = (*USUAL["llama"][:2], ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"])


@pytest.mark.parametrize("kind", USUAL)
def test_each_architecture_has_its_usual_places(kind):
    configs = (mindpet.LoraConfig(), mindpet.AdapterConfig(bottleneck_size=2), mindpet.IA3Config())
    for config, names in zip(configs, USUAL[kind], strict=True):
        state = require_state(mindpet.get_peft_model(small(kind), config))
        assert [item.path for item in state.replacements] == _layers(kind, *names)
    assert {item.path for item in state.replacements if item.cell.feedforward} == set(_layers(kind, names[-1]))
    words = mindpet.get_peft_model(small(kind), mindpet.TrainableTokensConfig(token_indices=(1,)))
    (word,) = require_state(words).replacements
    assert word.path == ("transformer.wte" if kind == "gpt2" else "model.embed_tokens")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_all_linear_leaves_out_the_head(kind):
    names = {"gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]}.get(kind)
    names = names or [f"self_attn.{name}_proj" for name in "qkvo"] + [
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    ]
    network = mindpet.get_peft_model(small(kind), mindpet.LoraConfig(r=1, target_modules="all-linear"))
    assert [item.path for item in require_state(network).replacements] == _layers(kind, *names)


TOKENS = mindpet.TrainableTokensConfig(token_indices=(7, 3))


def test_trained_tokens_reach_a_tied_head():
    network, texts = small("gpt2"), batch_of([4, 7, 2, 5, 1])
    plain = network(*texts).asnumpy()
    mindpet.get_peft_model(network, TOKENS, max_tokens=4)
    np.testing.assert_allclose(network(*texts).asnumpy(), plain, atol=5e-7)  # products of another width round otherwise
    assert not has_effect(network, state_of(network))
    move_adapter(network)
    assert has_effect(network, state_of(network))
    adapted = network(*texts).asnumpy()
    (rows,) = network.trainable_params()
    assert mindspore.grad(Squared(network), None, [rows])(*texts)[0].asnumpy()[:2].any(1).all()
    mindpet.accelerate(network)
    np.testing.assert_allclose(network(*texts).asnumpy(), adapted, atol=1e-5)
    mindpet.decelerate(network)

    mindpet.merge(network)  # the rows are in the table, from which both ends read
    np.testing.assert_allclose(network(*texts).asnumpy(), adapted, atol=1e-5)
    mindpet.unmerge(network)
    mindpet.disable_adapter(network)
    np.testing.assert_array_equal(network(*texts).asnumpy(), plain)
    mindpet.enable_adapter(network)
    mindpet.add_adapter(network, "other", mindpet.TrainableTokensConfig(token_indices=(11,)))
    mindpet.set_adapter(network, "other")
    move_adapter(network)
    changed = np.flatnonzero(network(*texts).asnumpy()[0, 0] != plain[0, 0])
    assert changed.tolist() == [11]
    mindpet.unload(network)
    np.testing.assert_array_equal(network(*texts).asnumpy(), plain)


@pytest.mark.slow
def test_trained_tokens_reach_a_tied_head_in_a_graph():
    network, texts = small("llama", tie_word_embeddings=True), batch_of([4, 7, 2, 5, 1])
    plain = network(*texts).asnumpy()
    move_adapter(mindpet.get_peft_model(network, TOKENS))
    adapted = network(*texts).asnumpy()
    assert np.flatnonzero(adapted[0, 0] != plain[0, 0]).tolist() == [3, 7]
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    np.testing.assert_allclose(network(*texts).asnumpy(), adapted, atol=1e-5)


def test_a_head_that_trained_tokens_reach_takes_no_other_method():
    lora = mindpet.LoraConfig(r=1, target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"lm_head is wanted by lora, and tokens changes it too.*leave it out"):
        mindpet.get_peft_model(small("gpt2"), [TOKENS, lora])
    mindpet.get_peft_model(small("llama"), [TOKENS, lora])
    whole = mindpet.LoraConfig(r=1, target_modules=["c_attn"], modules_to_save=["lm_head"])
    with pytest.raises(InputError, match=r"lm_head is trained whole by modules_to_save, and the tokens of its weight"):
        mindpet.get_peft_model(small("gpt2"), [TOKENS, whole])


class Own(nn.Cell):
    """A language model of a user's own, whose head is the table of its words."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(19, 4)
        self.inner = nn.Dense(4, 4)
        self.to_words = nn.Dense(4, 19, has_bias=False)
        self.to_words.weight = self.words.embedding_table


def test_the_tied_head_of_another_network_is_found():
    network = mindpet.get_peft_model(Own(), mindpet.LoraConfig(r=1, target_modules="all-linear"))
    assert [item.path for item in require_state(network).replacements] == ["inner"]
    with pytest.raises(InputError, match=r"words shares its table with to_words.*attribute tied_rows"):
        mindpet.get_peft_model(Own(), TOKENS.model_copy(update={"target_modules": ["words"]}))


def test_a_network_around_one_has_the_places_of_its_paths():
    assert placement_of(Network(nn.SequentialCell(small("qwen2")))).architecture == "llama"
    assert placement_of(Network(small("qwen2"))).architecture == "qwen2"


PREFIX = mindpet.PTuning2Config(num_virtual_tokens=3)
_SLOW = pytest.mark.slow
KINDS = pytest.mark.parametrize(  # a graph takes seconds to compile; the fast tests have those of one architecture
    ("kind", "mode"),
    [
        ("llama", "graph"),
        *((kind, "pynative") for kind in ("gpt2", "llama", "glm")),
        *(pytest.param(kind, "graph", marks=_SLOW) for kind in ("gpt2", "glm")),
    ],
    indirect=["mode"],
)


def prefixed(kind, config=PREFIX, room=5):
    """Return a language model with a prefix that tells, in room for more tokens."""
    network = mindpet.get_peft_model(small(kind), config, max_tokens=room)
    move_adapter(network)
    return network


class Squared(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids, attention_mask):
        return (self.network(input_ids, attention_mask) ** 2).sum()


def batch_of(*rows):
    """Return input_ids and attention_mask; 0 is padding."""
    ids = np.array(rows, np.int32)
    return Tensor(ids), Tensor((ids > 0).astype(np.int32))


@_SLOW
@EVERY_METHOD
@pytest.mark.parametrize("kind", ["gpt2", "glm"])
def test_every_method_goes_on_a_language_model_by_itself(kind, method):
    network, texts = small(kind), batch_of([4, 7, 2, 5, 1])
    before = network(*texts).asnumpy()
    mindpet.get_peft_model(network, config_of(method))
    change = np.abs(network(*texts).asnumpy() - before).max()
    # The head of trained tokens that is tied has products of another width, which may round otherwise.
    unchanged = change <= (5e-7 if (kind, method) == ("gpt2", "tokens") else 0)
    assert unchanged == (method not in CHANGES_THE_START)
    gradients = mindspore.grad(Squared(network), None, network.trainable_params())(*texts)
    assert any(gradient.asnumpy().any() for gradient in gradients)


@KINDS
def test_every_position_sees_the_prefix_and_no_later_token(kind, mode):
    network = prefixed(kind)
    rows = [4, 7, 2, 5, 9], [4, 7, 2, 11, 1], [4, 7, 2, 0, 0], [0, 0, 4, 7, 2]
    logits = network(*batch_of(*rows)).asnumpy()
    np.testing.assert_allclose(logits[1:3, :3], logits[[0, 0], :3], atol=1e-5)
    np.testing.assert_allclose(logits[3, 2:], logits[0, :3], atol=1e-5)
    mindpet.disable_adapter(network)
    assert np.abs(network(*batch_of(*rows)).asnumpy() - logits)[0].max(-1).min() > 1e-3


@KINDS
def test_training_reaches_the_prefix_that_is_seen(kind, mode):
    config = PREFIX if kind != "glm" else mindpet.PrefixConfig(num_virtual_tokens=3, dropout_rate=0.0)
    network = mindpet.get_peft_model(small(kind), config, max_tokens=4)
    trained = network.trainable_params()
    gradients = mindspore.grad(Squared(network), None, trained)(*batch_of([4, 7, 2, 5, 0]))
    for parameter, gradient in zip(trained, gradients, strict=True):
        assert np.abs(gradient.asnumpy()).max() > 0, parameter.name
        if "table" in parameter.name:
            assert not gradient.asnumpy()[3:].any()


@KINDS
def test_generation_keeps_the_prefix_in_its_cache(kind, mode):
    network = prefixed(kind)
    prompts = np.array([[0, 0, 4, 7], [3, 8, 1, 12]], np.int32)
    mask = (prompts > 0).astype(np.int32)
    new = generate(network, prompts, mask, 5)
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    whole, seen = np.concatenate([prompts, new], 1), np.concatenate([mask, np.ones_like(new)], 1)
    logits = network(Tensor(whole), Tensor(seen)).asnumpy()[:, 3:-1]
    assert np.array_equal(logits.argmax(-1), new)
