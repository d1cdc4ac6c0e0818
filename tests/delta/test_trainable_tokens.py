"""Trainable tokens: only the chosen rows change and train, as in PEFT."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta import TrainableTokensEmbedding, _reference
from tests.delta.layers import NUMPY, Probed, Side, random_input, randomise, values_of
from tests.delta.peers import adapt

WORDS, SIZE, TOKENS = 9, 5, (3, 0, 8)
IDS = np.array([[1, 3, 3], [8, 4, 0]], np.int32)


def _embedding(use_one_hot=False, dtype=mstype.float32):
    embedding = randomise(nn.Embedding(WORDS, SIZE, use_one_hot))
    embedding.embedding_table.set_dtype(dtype)
    return embedding


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_it_starts_as_the_embedding_and_follows_the_formula(mode, dtype):
    bases = [_embedding(dtype=dtype), _embedding(True)]
    plain = [base(Tensor(IDS)).asnumpy() for base in bases]
    starting = [TrainableTokensEmbedding.from_embedding(base, TOKENS) for base in bases]
    moved = [randomise(TrainableTokensEmbedding.from_embedding(base, TOKENS)) for base in bases]
    outputs = Side(starting + moved)(Tensor(IDS))
    for output, expected in zip(outputs[:2], plain, strict=True):
        assert output.asnumpy().dtype == expected.dtype
        assert np.array_equal(output.asnumpy(), expected)
    for output, cell in zip(outputs[2:], moved, strict=True):
        assert np.array_equal(output.asnumpy(), _reference.tokens_embedding(IDS, values_of(cell)))
        expected = cell.merged_values()["embedding_table"][IDS]
        assert np.array_equal(output.asnumpy(), expected.astype(output.asnumpy().dtype))


def test_each_row_gets_the_gradient_of_its_own_places(mode):
    layer = randomise(TrainableTokensEmbedding.from_embedding(_embedding(), TOKENS))
    probe = random_input((*IDS.shape, SIZE))
    weights = [layer.mindpet_delta_tokens_rows, layer.embedding_table]
    by_row, by_table = mindspore.grad(Probed(Side([layer]), [probe]), None, weights)(Tensor(IDS))
    expected = np.array([probe[token == IDS].sum(0) for token in range(WORDS)])
    np.testing.assert_allclose(by_row.asnumpy(), expected[list(TOKENS)], rtol=1e-6)
    expected[list(TOKENS)] = 0
    np.testing.assert_allclose(by_table.asnumpy(), expected, rtol=1e-6)


def test_the_very_parameter_of_the_base_is_used_and_names_stay():
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(WORDS, SIZE, padding_idx=2)

    network = Network().set_train()
    table = network.words.embedding_table
    table.requires_grad = False
    layer = TrainableTokensEmbedding.from_embedding(network.words, list(TOKENS), mstype.float16)
    assert layer.embedding_table is table
    assert (table.name, table.requires_grad, layer.training) == ("words.embedding_table", False, True)
    assert {name: (tuple(p.shape), p.dtype) for name, p in layer.parameters_dict().items()} == {
        "words.embedding_table": ((WORDS, SIZE), mstype.float32),
        "words.mindpet_delta_tokens_rows": ((len(TOKENS), SIZE), mstype.float16),
        "words.mindpet_state_token_slots": ((WORDS,), mstype.int32),
    }
    assert [p.name for p in layer.trainable_params()] == ["words.mindpet_delta_tokens_rows"]
    assert layer.token_indices == TOKENS
    assert layer.padding_idx == 2


def test_the_scaling_and_the_slots_are_values(mode):
    layer = randomise(TrainableTokensEmbedding.from_embedding(_embedding(), TOKENS))
    layer.scaling = Parameter(Tensor(1.0, mstype.float32), name="scaling", requires_grad=False)
    rows = layer.mindpet_delta_tokens_rows.asnumpy()
    assert np.array_equal(layer(Tensor(IDS)).asnumpy()[0, 1], rows[0])
    slots = np.full(WORDS, -1, np.int32)
    slots[1] = 2
    layer.mindpet_state_token_slots.set_data(Tensor(slots))
    output, table = layer(Tensor(IDS)).asnumpy(), layer.embedding_table.asnumpy()
    assert np.array_equal(output[0], [rows[2], table[3], table[3]])
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    assert np.array_equal(layer(Tensor(IDS)).asnumpy(), table[IDS])
    assert np.array_equal(layer.merged_values()["embedding_table"], table)


def test_a_table_with_other_values_needs_a_reset(mode):
    layer = TrainableTokensEmbedding(WORDS, SIZE, TOKENS)
    layer.embedding_table.set_data(Tensor(random_input((WORDS, SIZE))))
    layer.reset_rows()
    assert np.array_equal(layer(Tensor(IDS)).asnumpy(), layer.embedding_table.asnumpy()[IDS])


def test_a_merged_layer_does_not_train(mode):
    layer = TrainableTokensEmbedding(WORDS, SIZE, TOKENS).set_train()
    layer.merged = True
    with pytest.raises(ValueError, match="unmerge"):
        layer(Tensor(IDS))


@pytest.mark.parametrize(
    ("tokens", "error", "said"),
    [
        (3, TypeError, "int"),
        ("3", TypeError, "str"),
        (None, TypeError, "NoneType"),
        ([1.0], TypeError, "list of Python ints"),
        ([True], TypeError, "list of Python ints"),
        (np.array([1]), TypeError, "ndarray"),
        ([], ValueError, "empty"),
        ([1, 2, 1], ValueError, "with 1 twice"),
        ([1, WORDS], ValueError, f"from 0 to {WORDS - 1}"),
        ([-1], ValueError, "with -1"),
    ],
)
def test_wrong_tokens_are_refused(tokens, error, said):
    with pytest.raises(error, match=said) as raised:
        TrainableTokensEmbedding(WORDS, SIZE, tokens)
    assert "token_indices" in str(raised.value)


@pytest.mark.parametrize("stranger", [None, nn.Dense(2, 2), TrainableTokensEmbedding(WORDS, SIZE, [1])], ids=str)
def test_what_computes_otherwise_is_refused(stranger):
    with pytest.raises(TypeError, match="embedding"):
        TrainableTokensEmbedding.from_embedding(stranger, [1])


@pytest.mark.slow
def test_it_equals_peft(mode):
    import torch
    from peft import TrainableTokensConfig

    module = torch.nn.Embedding(WORDS, SIZE)
    layer = randomise(TrainableTokensEmbedding(WORDS, SIZE, TOKENS))
    module.weight.data = torch.tensor(layer.embedding_table.asnumpy())
    peer = adapt(module, TrainableTokensConfig(token_indices=list(TOKENS), target_modules=["layer"]))
    rows = peer.trainable_tokens_delta["default"]
    layer.reset_rows()
    assert np.array_equal(layer.mindpet_delta_tokens_rows.asnumpy(), rows.detach().numpy())
    randomise(layer, seed=5)
    rows.data = torch.tensor(layer.mindpet_delta_tokens_rows.asnumpy())
    peer.base_layer.weight.data = torch.tensor(layer.embedding_table.asnumpy())
    output = peer(torch.tensor(IDS))
    assert np.array_equal(layer(Tensor(IDS)).asnumpy(), output.detach().numpy())
    probe = random_input((*IDS.shape, SIZE))
    (output * torch.tensor(probe)).sum().backward()
    weights = [layer.mindpet_delta_tokens_rows]
    gradient = mindspore.grad(Probed(Side([layer]), [probe]), None, weights)(Tensor(IDS))[0]
    np.testing.assert_allclose(gradient.asnumpy(), rows.grad.numpy(), rtol=1e-6)
    peer.merge()
    assert np.array_equal(layer.merged_values()["embedding_table"], peer.base_layer.weight.detach().numpy())
