"""BERT's attention takes a prefix: the numbers, what it leaves alone, and what it costs who feeds none."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.models.bert import BertConfig, BertForSequenceClassification, BertModel
from tests.models import numpy_bert
from tests.models.numpy_bert import TINY, random_batch, random_tensors, write_folder

TOKENS = 2


class Prepend(nn.Cell):
    """The same keys and values before those of each example."""

    def __init__(self, key, value):
        super().__init__()
        self.key, self.value = Tensor(key), Tensor(value)

    def construct(self, key, value, mask):
        visible = ops.zeros(mask.shape[:-1] + (TOKENS,), mask.dtype)  # noqa: RUF005
        return self._before(self.key, key), self._before(self.value, value), ops.concat((visible, mask), -1)

    def _before(self, prefix, states):
        prefix = ops.broadcast_to(prefix, (states.shape[0], TOKENS, states.shape[2])).astype(states.dtype)
        return ops.concat((prefix, states), 1)


def as_tensors(arrays):
    return [Tensor(array.astype(np.int32)) for array in arrays]


def _prefixes(seed=5):
    rng = np.random.default_rng(seed)
    return [
        [rng.normal(size=(1, TOKENS, TINY["hidden_size"])).astype(np.float32) for _ in range(2)]
        for _ in range(TINY["num_hidden_layers"])
    ]


def _feed(net, prefixes):
    for layer, prefix in zip(net.bert.encoder.layer, prefixes, strict=True):
        layer.attention.self.prefix = Prepend(*prefix)
    return net


def _fed_numpy_logits(monkeypatch, tensors, prefixes, batch):
    """NumPy's BERT with an attention that sees each layer's prefix before the text."""
    plain, left = numpy_bert.formulas.attention, iter(prefixes)

    def attention(query, key, value, mask, num_heads):
        ahead = [np.broadcast_to(part, (len(query), TOKENS, query.shape[-1])) for part in next(left)]
        key, value = (np.concatenate(pair, 1) for pair in zip(ahead, (key, value), strict=True))
        visible = np.zeros((*mask.shape[:-1], TOKENS))
        return plain(query, key, value, np.concatenate((visible, mask), -1), num_heads)

    monkeypatch.setattr(numpy_bert.formulas, "attention", attention)
    pooled = numpy_bert.bert(tensors, TINY, *batch)[1]
    return pooled @ tensors["classifier.weight"].T.astype(np.float64) + tensors["classifier.bias"]


def test_a_fed_prefix_stands_before_each_examples_keys(tmp_path, mode, monkeypatch):
    net = _feed(BertForSequenceClassification.from_pretrained(write_folder(tmp_path)), _prefixes()).set_train(False)
    batch = random_batch(TINY)
    expected = _fed_numpy_logits(monkeypatch, random_tensors(TINY), _prefixes(), batch)
    np.testing.assert_allclose(net(*as_tensors(batch)).asnumpy(), expected, atol=5e-5)


def test_the_text_may_be_as_long_as_without_a_prefix(tmp_path):
    net = _feed(BertForSequenceClassification.from_pretrained(write_folder(tmp_path)), _prefixes()).set_train(False)
    longest = TINY["max_position_embeddings"]
    assert net(*as_tensors(random_batch(TINY, length=longest))).shape == (3, 4)


def test_half_activations_take_a_prefix(tmp_path, mode):
    folder = write_folder(tmp_path)
    half = BertForSequenceClassification.from_pretrained(folder, compute_dtype=mindspore.float16)
    whole = BertForSequenceClassification.from_pretrained(folder)
    batch = as_tensors(random_batch(TINY))
    logits = [_feed(net, _prefixes()).set_train(False)(*batch) for net in (half, whole)]
    assert logits[0].dtype == mstype.float32
    np.testing.assert_allclose(logits[0].asnumpy(), logits[1].asnumpy(), atol=0.03)


def test_nothing_fed_is_nothing_changed(tmp_path, mode):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path)).set_train(False)
    batch = as_tensors(random_batch(TINY))
    before = net(*batch).asnumpy()
    names = [parameter.name for parameter in net.get_parameters()]
    _feed(net, _prefixes())
    assert [parameter.name for parameter in net.get_parameters()] == names
    for layer in net.bert.encoder.layer:
        layer.attention.self.prefix = None
    assert all(cell.prefix is None for _, cell in net.cells_and_names() if hasattr(cell, "prefix"))
    net.compile_cache.clear()
    assert np.array_equal(net(*batch).asnumpy(), before)


@pytest.mark.parametrize(("width", "heads"), [(12, 3), (8, 1)])
def test_attentions_say_how_large_their_keys_are(width, heads):
    net = BertModel(BertConfig(hidden_size=width, num_attention_heads=heads, num_hidden_layers=1, vocab_size=7))
    attention = net.encoder.layer[0].attention.self
    assert (attention.num_heads, attention.head_dim, attention.prefix) == (heads, width // heads, None)
