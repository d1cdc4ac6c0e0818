from contextlib import nullcontext
from functools import partial

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.data.batches import Batch
from mindpet.data.language import LanguageBatch
from mindpet.delta.ia3 import IA3Dense
from mindpet.models.bert import BertLayer
from mindpet.models.decoder import DecoderForCausalLM
from mindpet.train import step as step_module
from mindpet.train.blocks import Blocks
from mindpet.train.losses import ClassificationLoss, LanguageLoss, RDropClassificationLoss
from mindpet.train.methods import HEAD
from mindpet.train.optimizer import build_optimizer
from mindpet.train.prepare import is_head
from mindpet.train.step import TrainStep
from mindpet.tuning.accelerate import accelerate, decelerate
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.dropout import Dropout
from tests.methods import config_of, move_adapter, small_bert
from tests.scale import REPETITION
from tests.train.tiny_language import WORDS, write_language_model

pytestmark = pytest.mark.skipif("f32" not in kernels.possible_kernels(), reason="no kernels 'f32' here")

ROWS, LENGTH = 3, 5


@pytest.fixture(autouse=True)
def in_graph_mode():
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def _classifier(method="lora", layers=2, **fields):
    mindspore.set_seed(0)
    network = small_bert(layers=layers)
    if method == "full":
        network.set_train()
    else:
        get_peft_model(network, config_of(method, modules_to_save=[HEAD], **fields))
        move_adapter(network)
    accelerate(network)
    network.set_train()
    return network


def _decoder(folder, method="lora", model_type="llama", **fields):
    mindspore.set_seed(0)
    network = DecoderForCausalLM.from_pretrained(write_language_model(folder, model_type))
    if method != "full":
        get_peft_model(network, config_of(method, **fields))
        move_adapter(network)
    accelerate(network)
    network.set_train()
    return network


def _batch(rows=ROWS, length=LENGTH):
    generator = np.random.default_rng(3)
    ids = generator.integers(1, 10, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), np.int32)
    mask[0, 2:] = 0
    return Batch(ids, mask, np.zeros_like(ids), np.arange(rows, dtype=np.int32) % 3, np.arange(rows))


def _language_batch():
    generator = np.random.default_rng(3)
    ids, labels = generator.integers(0, WORDS - 1, (2, ROWS, LENGTH)).astype(np.int32)
    mask = np.ones((ROWS, LENGTH), np.int32)
    mask[0, 3:], labels[0, 2:] = 0, -1
    return LanguageBatch(ids, mask, labels, np.arange(ROWS))


def _step(network, loss=ClassificationLoss):
    rates = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "warmup_ratio": 0.0, "weight_decay": 0.01}
    return TrainStep(network, build_optimizer(network, steps=9, is_head=is_head, **rates), False, loss=loss)


def _trained(network, batch, loss):
    """Return the losses of three steps, and afterwards all that is trained."""
    step = _step(network, loss)
    losses = [step(batch).loss for _ in range(3)]
    return losses, {parameter.name: parameter.asnumpy() for parameter in network.trainable_params()}


def _have_no_blocks(monkeypatch):
    monkeypatch.setattr(Blocks, "in_place", lambda blocks: nullcontext())


def _expect_the_same_without_blocks(make, batch, loss, monkeypatch):
    """Train two equal networks, the second one without blocks, and compare."""
    network = make()
    assert network.trainable_params()
    losses, values = _trained(network, batch, loss)
    _have_no_blocks(monkeypatch)
    expected_losses, expected = _trained(make(), batch, loss)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    assert values.keys() == expected.keys()
    for name, value in values.items():  # AdamW moves each number by about the learning rate, 1e-2
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    start = {parameter.name: parameter.asnumpy() for parameter in make().trainable_params()}
    assert any(np.abs(value - start[name]).max() > 1e-3 for name, value in values.items())


def _blocks(network):
    return Blocks(network, network.trainable_params())


def _count(network):
    return len(_blocks(network))


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("lora", {}),
        pytest.param("lora", {"target_modules": r".*\.(query|value|dense)"}, marks=REPETITION),
        pytest.param("lora", {"bias": "all"}, marks=REPETITION),
        ("bitfit", {}),
        pytest.param("full", {}, marks=pytest.mark.slow),
    ],
)
def test_a_classifier_trains_the_same_with_blocks_and_without(method, fields, monkeypatch):
    assert _count(_classifier(method, **fields)) == 2
    _expect_the_same_without_blocks(lambda: _classifier(method, **fields), _batch(), ClassificationLoss, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_decoder_trains_the_same_with_blocks_and_without(method, tmp_path, monkeypatch):
    assert _count(_decoder(tmp_path, method)) == 1
    _expect_the_same_without_blocks(lambda: _decoder(tmp_path, method), _language_batch(), LanguageLoss, monkeypatch)


@pytest.mark.slow
def test_r_drop_trains_the_same_with_blocks_and_without(monkeypatch):
    _expect_the_same_without_blocks(
        _classifier, _batch(), lambda network: RDropClassificationLoss(network, 0.5), monkeypatch
    )


def _with_hook(network):
    network.bert.encoder.layer[0].attention.self.query.register_forward_hook(lambda cell, inputs, output: output)


def _with_dropout(network):
    network.bert.encoder.layer[0].output.dropout = Dropout(0.5).set_train()


def _with_attention_dropout(network):
    network.bert.encoder.layer[0].attention.self.dropout = Dropout(0.5).set_train()


def _with_prefix(network):
    network.bert.encoder.layer[0].attention.self.prefix = nn.Identity()


def _with_plain_dense(network):
    network.bert.encoder.layer[0].intermediate.dense = nn.Dense(8, 12)


def _with_another_activation(network):
    network.bert.encoder.layer[0].intermediate.activate = ops.relu


def _with_ia3(network):
    network.bert.encoder.layer[0].attention.self.key = IA3Dense(8, 8)


def _in_half_precision(network):
    network.bert.encoder.layer[0].intermediate.dense.weight.set_dtype(mindspore.float16)


def _with_a_construct_of_its_own(network):
    output = network.bert.encoder.layer[0].output
    object.__setattr__(output, "construct", lambda x, residual: residual)


def _with_an_activation(activate):
    def change(network):
        network.bert.encoder.layer[0].intermediate.activate = activate

    return change


def _wrapped(x):
    return kernels.gelu(x)


class _Stopped(nn.Cell):
    """A user's cell: what `ops.stop_gradient` does to a stand-in says nothing of what it does in a graph."""

    def construct(self, x):
        return ops.stop_gradient(x)


def _with_a_users_cell(network):
    network.bert.encoder.layer[0].output.dropout = _Stopped()


class _Other(BertLayer):
    """A user's layer, which may compute anything."""


def _of_another_class(network):
    object.__setattr__(network.bert.encoder.layer[0], "__class__", _Other)


@pytest.mark.parametrize(
    "change",
    [
        *(_with_hook, _with_dropout, _with_attention_dropout, _with_prefix, _with_plain_dense),
        *(_with_another_activation, _with_ia3, _in_half_precision, _of_another_class),
        *(_with_a_construct_of_its_own, _with_a_users_cell),
        *(_with_an_activation(_wrapped), _with_an_activation(partial(kernels.gelu))),
        lambda network: network.bert.encoder.layer[0].recompute(),
        lambda network: network.bert.encoder.layer[0].intermediate.to_float(mindspore.float16),
    ],
)
def test_a_layer_that_does_anything_else_stays_as_it_is_and_the_other_is_a_block(change):
    network = _classifier()
    change(network)
    assert _count(network) == 1


def test_who_exchanges_a_kernel_is_obeyed(monkeypatch):
    network = _classifier()
    monkeypatch.setattr(kernels, "gelu", _wrapped)
    assert _count(network) == 0


def test_what_was_called_by_itself_is_a_block_all_the_same():
    network = _classifier()
    query = network.bert.encoder.layer[0].attention.self.query
    query(Tensor(np.ones((ROWS, LENGTH, 8), np.float32)))
    assert _count(network) == 2


def test_a_frozen_parameter_that_the_optimizer_holds_has_no_block_that_would_hand_it_back_as_its_gradient(monkeypatch):
    def losses():
        network = _classifier("full", layers=1)
        step = _step(network)
        network.bert.encoder.layer[0].intermediate.dense.weight.requires_grad = False
        return [step(_batch()).loss for _ in range(2)], Blocks(network, step._optimizer.parameters)

    found, blocks = losses()
    assert blocks.described() == []
    _have_no_blocks(monkeypatch)
    assert losses()[0] == found


@pytest.mark.slow
def test_in_half_precision_a_layer_computes_as_before(monkeypatch):
    def make():
        network = small_bert(layers=1, compute_dtype=mindspore.float16)
        accelerate(network)
        return network.set_train()

    _expect_the_same_without_blocks(make, _batch(), ClassificationLoss, monkeypatch)


def test_a_decoder_that_goes_on_from_a_past_computes_as_before(tmp_path):
    network = _decoder(tmp_path)
    ids, mask = Tensor(np.array([[1, 2, 3]], np.int32)), Tensor(np.ones((1, 3), np.int32))

    def logits():
        _, past = network(ids, mask, None, 2)
        with _blocks(network).in_place():
            return network(ids[:, :1], mask[:, :1], mindspore.mutable(past))[0].asnumpy()

    found = logits()
    decelerate(network)  # now there are no blocks
    np.testing.assert_allclose(found, logits(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["adapter", "prefixtuning", "ptuning2", "low_rank_adapter", "vera"])
def test_methods_that_do_anything_else_have_no_blocks(method):
    assert _count(_classifier(method)) == 0


def test_there_are_no_blocks_without_native_kernels_in_pynative_mode_and_in_a_network_that_was_not_accelerated(
    tmp_path,
):
    network = _classifier()
    assert _count(network) == 2
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
    assert _count(network) == 0
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    kernels.use_kernels("off")
    try:
        assert _count(network) == 0
    finally:
        kernels.use_kernels("f32")
    assert _count(small_bert()) == 0
    assert _count(_decoder(tmp_path, model_type="glm")) == 0  # gate and values are halves of one product


def test_layers_are_as_before_when_the_step_is_compiled():
    network = _classifier()
    layers = list(network.bert.encoder.layer)
    layers[0].block = "the user's own"
    before = [(type(layer), sorted(vars(layer))) for layer in layers]
    blocks = _blocks(network)
    with blocks.in_place():
        assert [type(layer).__name__ for layer in layers] == ["BertLayerAsBlock"] * 2
        assert all(isinstance(layer, BertLayer) for layer in layers)
    assert [(type(layer), sorted(vars(layer))) for layer in layers] == before
    with pytest.raises(ZeroDivisionError), blocks.in_place():
        1 / 0  # noqa: B018
    assert [(type(layer), sorted(vars(layer))) for layer in layers] == before


def test_a_step_sees_values_that_change_and_evaluation_goes_on_as_before(monkeypatch):
    def losses():
        network = _classifier()
        step = _step(network)
        found = [step(_batch()).loss]
        query = network.bert.encoder.layer[1].attention.self.query
        query.weight.set_data(query.weight * 2)
        found.append(step(_batch()).loss)
        query.scaling.set_data(query.scaling * 3)
        found.append(step(_batch()).loss)
        network.set_train(False)
        return found, network(*map(Tensor, _batch()[:3])).asnumpy()

    found, logits = losses()
    _have_no_blocks(monkeypatch)
    expected, expected_logits = losses()
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_layers_of_different_kinds_are_blocks_of_different_numbers(monkeypatch):
    def make():
        return _classifier(layers=3, target_modules=r".*layer\.[02]\..*\.(query|value)")

    described = _blocks(make()).described()
    assert len(described) == len({number for number, _ in described}) == 2
    _expect_the_same_without_blocks(make, _batch(), ClassificationLoss, monkeypatch)


def test_a_step_begins_with_blocks(monkeypatch):
    entered = []
    in_place = Blocks.in_place
    monkeypatch.setattr(step_module.Blocks, "in_place", lambda blocks: entered.append(blocks) or in_place(blocks))
    step = _step(_classifier(layers=1))
    step(_batch())
    step(_batch())
    assert len(entered) == 1
    assert len(entered[0].described()) == 1
