"""BERT against transformers on the same folders: real weights, and random ones of odd shapes."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindpet import kernels
from mindpet.data.embedded import minilm_folder
from mindpet.models._layers import ACTIVATIONS
from mindpet.models._loading import file_name
from mindpet.models.bert import BertForSequenceClassification, BertModel

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def random_batch(config, batch, length, seed=0):
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(1, config["vocab_size"], (batch, length))
    token_type_ids = rng.integers(0, config["type_vocab_size"], (batch, length))
    attention_mask = (rng.random((batch, length)) < 0.7).astype(np.int64)
    attention_mask[:, 0] = 1
    return input_ids, attention_mask, token_type_ids


def run_theirs(model, batch):
    import torch

    with torch.no_grad():
        return model.eval()(*(torch.tensor(array) for array in batch))


def as_tensors(batch):
    return [Tensor(array.astype(np.int32)) for array in batch]


def save_theirs(kind, config, folder, **arguments):
    """Let transformers write a random model of class `kind`; return it."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**config), **arguments)
    model.save_pretrained(folder)
    return model


def check_model(folder, batch):
    import transformers

    theirs = run_theirs(transformers.BertModel.from_pretrained(folder), batch)
    hidden, pooled = BertModel.from_pretrained(folder).set_train(False)(*as_tensors(batch))
    np.testing.assert_allclose(hidden.asnumpy(), theirs.last_hidden_state.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(pooled.asnumpy(), theirs.pooler_output.numpy(), rtol=0, atol=TOLERANCE)


REAL = {"vocab_size": 30522, "type_vocab_size": 2}
SMALL = {
    "vocab_size": 101,
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(("batch", "length"), [(8, 32), (1, 1), (2, 128), (1, 512)])
def test_real_weights(mode, batch, length):
    check_model(minilm_folder(), random_batch(REAL, batch, length))


def test_real_weights_with_a_classifier(mode, tmp_path):
    import torch
    import transformers

    torch.manual_seed(3)
    model = transformers.BertForSequenceClassification.from_pretrained(minilm_folder(), num_labels=5)
    model.save_pretrained(tmp_path)
    batch = random_batch(REAL, 4, 40)
    net = BertForSequenceClassification.from_pretrained(tmp_path)
    assert not net.head_is_new
    logits = net.set_train(False)(*as_tensors(batch))
    np.testing.assert_allclose(logits.asnumpy(), run_theirs(model, batch).logits.numpy(), rtol=0, atol=TOLERANCE)


ODD = {
    "plain": ({}, 3, 11),
    "one layer, one segment": ({"num_hidden_layers": 1, "type_vocab_size": 1}, 2, 7),
    "three segments": ({"type_vocab_size": 3}, 2, 7),
    "one text of one token": ({}, 1, 1),
    "as long as it can be": ({}, 2, 24),
    "one head": ({"num_attention_heads": 1}, 2, 5),
    "large epsilon": ({"layer_norm_eps": 0.1}, 2, 5),
} | {name: ({"hidden_act": name}, 3, 9) for name in ("gelu_new", "gelu_fast", "gelu_python", "relu", "silu", "tanh")}


@pytest.mark.parametrize("case", ODD)
def test_odd_shapes(mode, tmp_path, case):
    changes, batch, length = ODD[case]
    config = SMALL | changes
    save_theirs("BertModel", config, tmp_path)
    check_model(tmp_path, random_batch(config, batch, length))


def test_a_pretraining_model(tmp_path):
    save_theirs("BertForPreTraining", SMALL, tmp_path)
    check_model(tmp_path, random_batch(SMALL, 2, 6))


def test_a_model_without_its_pooler(tmp_path):
    model = save_theirs("BertModel", SMALL, tmp_path, add_pooling_layer=False)
    batch = random_batch(SMALL, 2, 6)
    hidden, pooled = BertModel.from_pretrained(tmp_path).set_train(False)(*as_tensors(batch))
    assert pooled is None
    expected = run_theirs(model, batch).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden.asnumpy(), expected, rtol=0, atol=TOLERANCE)


def test_a_model_in_shards(tmp_path):
    save_theirs("BertModel", SMALL, tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    check_model(tmp_path / "shards", random_batch(SMALL, 2, 6))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_model_in_half_precision(tmp_path, dtype):
    import torch

    model = save_theirs("BertModel", SMALL, tmp_path).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / dtype)
    batch = random_batch(SMALL, 2, 6)
    hidden, _ = BertModel.from_pretrained(tmp_path / dtype).set_train(False)(*as_tensors(batch))
    expected = run_theirs(model.float(), batch).last_hidden_state.numpy()
    np.testing.assert_allclose(hidden.asnumpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_gradients_of_all_parameters(mode, tmp_path, activation):
    import torch

    config = SMALL | {"num_labels": 5, "hidden_act": activation, "initializer_range": 0.1}
    model = save_theirs("BertForSequenceClassification", config, tmp_path).eval()
    batch, labels = random_batch(config, 4, 9), np.array([0, 4, 2, 2])
    loss = model(*(torch.tensor(array) for array in batch), labels=torch.tensor(labels)).loss
    loss.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    net = BertForSequenceClassification.from_pretrained(tmp_path).set_train(False)

    def our_loss(*inputs):
        return kernels.cross_entropy(net(*inputs), Tensor(labels.astype(np.int32)))

    parameters = net.trainable_params()
    value, gradients = mindspore.value_and_grad(our_loss, None, weights=parameters)(*as_tensors(batch))
    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    assert {file_name(parameter.name) for parameter in parameters} == expected.keys()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        theirs = expected[file_name(parameter.name)]
        tolerance = 1e-4 * max(0.01, np.abs(theirs).max())
        np.testing.assert_allclose(gradient.asnumpy(), theirs, rtol=0, atol=tolerance, err_msg=parameter.name)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_transformers(name):
    import torch
    from transformers.activations import ACT2FN

    x = np.linspace(-8, 8, 4001, dtype=np.float32)
    found = ACTIVATIONS[name](Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, ACT2FN[name](torch.tensor(x)).numpy(), rtol=0, atol=1e-5)
