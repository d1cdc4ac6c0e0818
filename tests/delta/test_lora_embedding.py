"""LoRA on an embedding: its formula, gradients, PEFT's numbers, and taking an embedding over."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta import LoRAEmbedding, _reference
from mindpet.delta._cases import central_differences
from tests.delta.layers import Probed, Side, random_input, randomise, values_of

WORDS, SIZE, RANK, ALPHA = 7, 5, 2, 3
IDS = np.array([[1, 6, 1], [0, 3, 6]], np.int32)


def _embedding(use_one_hot=False, dtype=mstype.float32):
    embedding = randomise(nn.Embedding(WORDS, SIZE, use_one_hot))
    embedding.embedding_table.set_dtype(dtype)
    return embedding


@pytest.mark.parametrize("dtype", [mstype.float32, mstype.float16], ids=str)
def test_the_result_starts_as_the_embedding_and_follows_the_formula(mode, dtype):
    bases = [_embedding(dtype=dtype), _embedding(True)]
    plain = [base(Tensor(IDS)).asnumpy() for base in bases]
    starting = [LoRAEmbedding.from_embedding(base, RANK, ALPHA) for base in bases]
    moved = [randomise(LoRAEmbedding.from_embedding(base, RANK, ALPHA)) for base in bases]
    outputs = Side(starting + moved)(Tensor(IDS))
    for output, expected in zip(outputs[:2], plain, strict=True):
        assert np.array_equal(output.asnumpy(), expected)
        assert output.asnumpy().dtype == expected.dtype
    tolerance = 1e-5 if dtype == mstype.float32 else 1e-2
    for output, cell in zip(outputs[2:], moved, strict=True):
        expected = _reference.lora_embedding(IDS, values_of(cell), ALPHA / RANK)
        np.testing.assert_allclose(output.asnumpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [mstype.float32, mstype.float16], ids=str)
def test_gradients_follow_finite_differences(mode, dtype):
    layer = randomise(LoRAEmbedding(WORDS, SIZE, RANK, ALPHA, param_init_type=dtype, compute_dtype=dtype))
    probe = random_input((*IDS.shape, SIZE))
    weights = list(layer.get_parameters())
    gradients = mindspore.grad(Probed(Side([layer]), [probe]), None, weights)(Tensor(IDS))
    values = values_of(layer)
    for name, gradient in zip(values, gradients, strict=True):
        expected = central_differences(
            lambda: float((_reference.lora_embedding(IDS, values, ALPHA / RANK) * probe).sum()), values[name]
        )
        tolerance = 1e-4 if dtype == mstype.float32 else 1e-2 * np.abs(expected).max()
        np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-3, atol=tolerance, err_msg=name)


def test_the_very_parameter_of_the_base_is_used_and_names_stay():
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(WORDS, SIZE, padding_idx=2)

    network = Network().set_train()
    table = network.words.embedding_table
    table.requires_grad = False
    layer = LoRAEmbedding.from_embedding(network.words, RANK, ALPHA)
    assert layer.embedding_table is table
    assert (table.name, table.requires_grad, layer.training) == ("words.embedding_table", False, True)
    assert {name: tuple(p.shape) for name, p in layer.parameters_dict().items()} == {
        "words.embedding_table": (WORDS, SIZE),
        "words.mindpet_delta_lora_a": (RANK, WORDS),
        "words.mindpet_delta_lora_b": (SIZE, RANK),
    }
    assert layer.gather is network.words.gather
    assert layer.padding_idx == 2
    assert not layer.mindpet_delta_lora_a.asnumpy().any()
    assert layer.mindpet_delta_lora_b.asnumpy().all()


def test_the_scaling_switches_the_branch_off_by_value(mode):
    layer = randomise(LoRAEmbedding.from_embedding(_embedding(), RANK, ALPHA))
    layer.scaling = Parameter(Tensor(1.5, mstype.float32), name="scaling", requires_grad=False)
    assert not np.array_equal(layer(Tensor(IDS)).asnumpy(), layer.embedding_table.asnumpy()[IDS])
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    assert np.array_equal(layer(Tensor(IDS)).asnumpy(), layer.embedding_table.asnumpy()[IDS])


def test_the_merged_values_are_the_layer():
    layer = randomise(LoRAEmbedding(WORDS, SIZE, RANK, ALPHA))
    table = layer.merged_values()["embedding_table"]
    assert table.dtype == np.float32
    np.testing.assert_allclose(layer(Tensor(IDS)).asnumpy(), table[IDS], rtol=1e-6, atol=1e-6)


def test_what_computes_otherwise_is_refused():
    class Scaled(nn.Embedding):
        def construct(self, ids):
            return 2 * super().construct(ids)

    for stranger in (None, nn.Dense(2, 2), Scaled(WORDS, SIZE), LoRAEmbedding(WORDS, SIZE, RANK, ALPHA)):
        with pytest.raises(TypeError, match=f"{type(stranger).__name__}; accepted is an nn.Embedding"):
            LoRAEmbedding.from_embedding(stranger, RANK, ALPHA)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"lora_rank": 2.0}, TypeError, "lora_rank"),
        ({"lora_rank": 0}, ValueError, "lora_rank"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha"),
        ({"lora_a_init": Tensor(np.ones((WORDS, RANK), np.float32))}, ValueError, "lora_a_init"),
        ({"compute_dtype": mstype.int8}, TypeError, "compute_dtype"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        LoRAEmbedding.from_embedding(_embedding(), **({"lora_rank": RANK, "lora_alpha": ALPHA} | arguments))


@pytest.mark.slow
def test_it_equals_peft(mode):
    import torch
    from peft import LoraConfig, get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, SIZE)

        def forward(self, x):
            return self.words(x)

    peer = get_peft_model(Holder(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["words"]))
    words = peer.base_model.model.words
    assert not words.lora_embedding_A.default.any()
    assert 0.1 < words.lora_embedding_B.default.std() < 3
    layer = randomise(LoRAEmbedding(WORDS, SIZE, RANK, ALPHA))
    pairs = {
        "embedding_table": words.base_layer.weight,
        "mindpet_delta_lora_a": words.lora_embedding_A.default,
        "mindpet_delta_lora_b": words.lora_embedding_B.default,
    }
    for name, value in values_of(layer).items():
        pairs[name].data = torch.tensor(value, dtype=torch.float32)
        pairs[name].requires_grad = True
    probe = random_input((*IDS.shape, SIZE))
    output = peer(torch.tensor(IDS))
    (output * torch.tensor(probe)).sum().backward()
    np.testing.assert_allclose(layer(Tensor(IDS)).asnumpy(), output.detach().numpy(), rtol=1e-5, atol=1e-5)
    weights = list(layer.get_parameters())
    gradients = mindspore.grad(Probed(Side([layer]), [probe]), None, weights)(Tensor(IDS))
    for weight, gradient in zip(weights, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), pairs[weight.name.split(".")[-1]].grad, rtol=1e-4, atol=1e-4)
    merged = layer.merged_values()["embedding_table"]
    peer.merge_adapter()
    np.testing.assert_allclose(merged, words.base_layer.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
