"""Prefixes: where the text stands that follows them, and what attentions share."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import mindpet
from mindpet.utils.exceptions import InputError
from tests.methods import batch, config_of, small_bert

PREFIX_METHODS = pytest.mark.parametrize("method", ["prefixtuning", "ptuning2"])
_ROOM, _LONGEST = 4, 4  # the small BERT has 8 positions


def _embed(network, shift=0):
    """Return what the embeddings give when the text begins at position `shift`, by another order of their table."""
    table = network.bert.embeddings.position_embeddings.embedding_table
    before = table.asnumpy().copy()
    table.copy_(Tensor(np.roll(before, -shift, axis=0)))
    input_ids, _, token_type_ids = batch()
    embedded = network.bert.embeddings(input_ids, token_type_ids).asnumpy()
    table.copy_(Tensor(before))
    return embedded


@PREFIX_METHODS
def test_the_text_stands_after_the_tokens_that_are_seen(method, mode):
    network = small_bert()
    expected = {shift: _embed(network, shift) for shift in (0, 2, 3)}
    mindpet.get_peft_model(network, config_of(method, num_virtual_tokens=3), max_tokens=_ROOM)
    mindpet.add_adapter(network, "short", config_of(method, num_virtual_tokens=2))
    assert np.array_equal(_embed(network), expected[3])
    mindpet.set_adapter(network, "short")
    assert np.array_equal(_embed(network), expected[2])
    mindpet.disable_adapter(network)
    assert np.array_equal(_embed(network), expected[0])
    mindpet.set_adapter(network, "default")
    assert np.array_equal(_embed(network), expected[3])
    mindpet.unload(network)
    assert network.bert.embeddings.position_shift is None
    assert np.array_equal(_embed(network), expected[0])


def test_a_text_too_long_for_the_positions_left_is_refused(mode):
    network = mindpet.get_peft_model(small_bert(), config_of("ptuning2"), max_tokens=_ROOM)
    assert network(*batch(length=_LONGEST)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"has 5 tokens.*at most 4 beside a prefix of up to 4: cut the texts"):
        network(*batch(length=_LONGEST + 1))


def test_a_failure_leaves_the_positions_as_they_were(monkeypatch):
    network = small_bert()
    monkeypatch.setattr("mindpet.tuning.attach.write_adapter", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mindpet.get_peft_model(network, config_of("ptuning2"))
    assert network.bert.embeddings.position_shift is None


def _projected(layers):
    network = small_bert(layers)
    mindpet.get_peft_model(network, config_of("ptuning2", prefix_projection=True, encoder_hidden_size=5))
    generator = np.random.default_rng(4)
    for parameter in network.trainable_params():
        parameter.set_data(Tensor(generator.normal(0, 0.3, parameter.shape).astype(np.float32)))
    return network


class Squared(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, input_ids, attention_mask, token_type_ids):
        return (self.network(input_ids, attention_mask, token_type_ids) ** 2).sum()


def _gradients(network):
    """Return a loss and its gradient for everything that is trained."""
    loss, gradients = mindspore.value_and_grad(Squared(network), None, network.trainable_params())(*batch())
    return [loss.asnumpy(), *(gradient.asnumpy() for gradient in gradients)]


def test_a_projection_computed_once_gives_what_each_attention_computes_alone(mode):
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    alone = _projected(2)
    alone.bert.shared_prefix = None
    expected = _gradients(alone)
    mindspore.set_context(mode=mindspore.GRAPH_MODE if mode == "graph" else mindspore.PYNATIVE_MODE)
    for one, other in zip(_gradients(_projected(2)), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shared", "times"), [(True, 1), (False, 3)])
def test_the_projection_is_computed_once_where_it_is_shared(shared, times):
    network = _projected(3)
    if not shared:
        network.bert.shared_prefix = None
    calls = []
    network.mindpet_prefix_encoder.mindpet_delta_ptuning2_dense_in.register_forward_hook(lambda *_: calls.append(1))
    network(*batch())
    assert len(calls) == times
    mindpet.unload(network)
    assert network.bert.shared_prefix is None


def test_the_network_itself_may_make_the_mask():
    encoder = small_bert().bert
    mindpet.get_peft_model(encoder, config_of("ptuning2"))
    assert encoder.shared_prefix is not None
    mindpet.unload(encoder)
    assert encoder.shared_prefix is None


class Bare(nn.Cell):
    """An attention to itself, of a network that numbers no positions."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim, self.prefix = 2, 3, None

    def construct(self, x):
        key, value, mask = x, x, ops.zeros((x.shape[0], 1, 1, x.shape[1]), x.dtype)
        if self.prefix is not None:
            key, value, mask = self.prefix(key, value, mask)
        scores = ops.matmul(x, key.transpose((0, 2, 1))) + mask[:, 0]
        return ops.matmul(ops.softmax(scores), value)


class Around(nn.Cell):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def construct(self, x):
        return self.inner(x)


def test_a_list_of_layers_is_no_place_for_an_encoder():
    with pytest.raises(InputError, match="put the network into a cell of its own class"):
        mindpet.get_peft_model(nn.SequentialCell(Bare()), config_of("ptuning2"))


def test_a_network_without_positions_takes_a_prefix(mode):
    network = Around(Bare())
    x = Tensor(np.random.default_rng(0).normal(size=(2, 4, 6)), mindspore.float32)
    before = network(x).asnumpy()
    mindpet.get_peft_model(network, config_of("ptuning2"))
    assert np.abs(network(x).asnumpy() - before).max() > 1e-3
