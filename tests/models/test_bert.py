"""BERT against its formula in NumPy and float64, on random weights and odd shapes."""

import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from mindpet import kernels
from mindpet.models.bert import POOLINGS, BertConfig, BertForSequenceClassification, BertModel
from mindpet.utils.exceptions import InputError
from tests.models import numpy_bert
from tests.models.numpy_bert import ACTIVATIONS, TINY, random_batch, random_tensors, write_folder
from tests.scale import REPETITION


def as_tensors(arrays):
    return [Tensor(array.astype(np.int32)) for array in arrays]


def expected_logits(tensors, config, batch, pooling):
    hidden, pooled = numpy_bert.bert(tensors, config, *batch)
    features = numpy_bert.pool(hidden, pooled, batch[1], pooling)
    return features @ tensors["classifier.weight"].T.astype(np.float64) + tensors["classifier.bias"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_logits(tmp_path, mode, pooling):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), pooling=pooling)
    net.set_train(False)
    batch = random_batch(TINY)
    logits = net(*as_tensors(batch))
    assert logits.dtype == mindspore.float32
    np.testing.assert_allclose(logits.asnumpy(), expected_logits(random_tensors(TINY), TINY, batch, pooling), atol=5e-5)
    features = net.features(*as_tensors(batch))
    hidden, pooled = numpy_bert.bert(random_tensors(TINY), TINY, *batch)
    np.testing.assert_allclose(features.asnumpy(), numpy_bert.pool(hidden, pooled, batch[1], pooling), atol=5e-5)


_ODD = (
    ({"hidden_size": 36, "vocab_size": 101, "num_hidden_layers": 1, "type_vocab_size": 1}, 2, 9),
    ({"num_hidden_layers": 1, "type_vocab_size": 3, "layer_norm_eps": 1e-3}, 1, 1),
)


@pytest.mark.parametrize(
    ("activation", "changes", "batch", "length"),
    [
        *[(activation, *_ODD[0]) for activation in ACTIVATIONS],
        *[pytest.param(name, *_ODD[1], marks=[] if name == "gelu" else REPETITION) for name in ACTIVATIONS],
    ],
)
def test_odd_shapes_and_every_activation(tmp_path, mode, activation, changes, batch, length):
    config = TINY | changes | {"hidden_act": activation}
    net = BertModel.from_pretrained(write_folder(tmp_path, config))
    net.set_train(False)
    arrays = random_batch(config, batch, length)
    hidden, pooled = net(*as_tensors(arrays))
    expected_hidden, expected_pooled = numpy_bert.bert(random_tensors(config), config, *arrays)
    np.testing.assert_allclose(hidden.asnumpy(), expected_hidden, atol=5e-5)
    np.testing.assert_allclose(pooled.asnumpy(), expected_pooled, atol=5e-5)


def test_model_without_a_pooler(tmp_path, mode):
    tensors = {name: values for name, values in random_tensors(TINY).items() if "pooler" not in name}
    net = BertModel.from_pretrained(write_folder(tmp_path, tensors=tensors))
    hidden, pooled = net.set_train(False)(*as_tensors(random_batch(TINY)))
    assert pooled is None
    np.testing.assert_allclose(hidden.asnumpy(), numpy_bert.bert(tensors, TINY, *random_batch(TINY))[0], atol=5e-5)


def test_float16_activations_keep_float32_parameters_and_logits(tmp_path, mode):
    folder = write_folder(tmp_path)
    net = BertForSequenceClassification.from_pretrained(folder, pooling="mean", compute_dtype=mindspore.float16)
    net.set_train(False)
    batch = random_batch(TINY)
    hidden, _ = net.bert(*as_tensors(batch))
    logits = net(*as_tensors(batch))
    assert hidden.dtype == mindspore.float16
    assert logits.dtype == mindspore.float32
    assert all(parameter.dtype == mindspore.float32 for parameter in net.get_parameters())
    expected = expected_logits(random_tensors(TINY), TINY, batch, "mean")
    np.testing.assert_allclose(logits.asnumpy(), expected, atol=0.03)

    frozen = BertForSequenceClassification.from_pretrained(folder, pooling="mean", compute_dtype=mindspore.float16)
    for parameter in frozen.bert.encoder.get_parameters():
        parameter.set_dtype(mindspore.float16)
    np.testing.assert_allclose(frozen.set_train(False)(*as_tensors(batch)).asnumpy(), logits.asnumpy(), atol=0.01)


def test_padding_changes_nothing(tmp_path, mode):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), pooling="mean").set_train(False)
    input_ids, _, token_type_ids = random_batch(TINY, length=4)
    visible = np.ones_like(input_ids)
    padded = [np.pad(array, ((0, 0), (0, 5))) for array in (input_ids, visible, token_type_ids)]
    plain = net(*as_tensors((input_ids, visible, token_type_ids)))
    np.testing.assert_allclose(net(*as_tensors(padded)).asnumpy(), plain.asnumpy(), atol=5e-6)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float16, np.bool_])
def test_the_mask_may_have_any_dtype(tmp_path, dtype):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), pooling="mean").set_train(False)
    input_ids, mask, segments = random_batch(TINY)
    other = net(Tensor(input_ids), Tensor(mask.astype(dtype)), Tensor(segments))
    np.testing.assert_array_equal(other.asnumpy(), net(*as_tensors((input_ids, mask, segments))).asnumpy())


def test_a_sequence_that_is_too_long_is_refused(tmp_path, mode):
    net = BertModel.from_pretrained(write_folder(tmp_path)).set_train(False)
    with pytest.raises(ValueError, match=r"10 tokens.*at most 9"):
        net(*as_tensors(random_batch(TINY, length=10)))


def test_gradients(tmp_path, mode):
    """The loss's slope along a random direction, for one parameter of each kind, against the float64 formula."""
    tensors = random_tensors(TINY)
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), dropout=0.0).set_train()
    batch, labels = random_batch(TINY), np.array([1, 3, -1])

    def loss(*inputs):
        return kernels.cross_entropy(net(*inputs), Tensor(labels.astype(np.int32)))

    parameters = {numpy_name(parameter.name): parameter for parameter in net.trainable_params()}
    assert parameters.keys() == tensors.keys()
    gradients = mindspore.grad(loss, grad_position=None, weights=list(parameters.values()))(*as_tensors(batch))
    rng = np.random.default_rng(5)
    for name, gradient in zip(parameters, gradients, strict=True):
        direction = rng.normal(size=gradient.shape)
        slope = directional_slope(tensors, name, direction, batch, labels)
        assert np.vdot(gradient.asnumpy(), direction) == pytest.approx(slope, rel=2e-3, abs=2e-5), name


def numpy_name(name):
    for leaf in ("embedding_table", "gamma"):
        name = name.replace(leaf, "weight")
    return name.replace("beta", "bias")


def directional_slope(tensors, name, direction, batch, labels, step=1e-5):
    def loss(distance):
        moved = tensors | {name: tensors[name].astype(np.float64) + distance * direction}
        return numpy_bert.formulas.cross_entropy(expected_logits(moved, TINY, batch, "pooler"), labels)

    return (loss(step) - loss(-step)) / (2 * step)


def test_dropouts_act_in_training_only(tmp_path, mode):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), dropout=0.5)
    inputs = as_tensors(random_batch(TINY))
    resting = net.set_train(False)(*inputs).asnumpy()
    assert np.abs(net.set_train(True)(*inputs).asnumpy() - resting).max() > 1e-3
    np.testing.assert_array_equal(net.set_train(False)(*inputs).asnumpy(), resting)


@pytest.mark.parametrize("kind", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"])
def test_each_dropout_of_the_configuration_counts(tmp_path, kind):
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path, TINY | none | {kind: 0.5}))
    inputs = as_tensors(random_batch(TINY))
    resting = net.set_train(False)(*inputs).asnumpy()
    assert np.abs(net.set_train(True)(*inputs).asnumpy() - resting).max() > 1e-3


def test_dropout_zero_trains_as_it_evaluates(tmp_path, mode):
    config = TINY | {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.5}
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path, config), dropout=0.0)
    inputs = as_tensors(random_batch(TINY))
    resting = net.set_train(False)(*inputs).asnumpy()
    np.testing.assert_array_equal(net.set_train(True)(*inputs).asnumpy(), resting)


def test_paths_are_those_of_transformers(tmp_path):
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path))
    cells = dict(net.cells_and_names())
    assert isinstance(cells["bert.encoder.layer.1.attention.self.query"], nn.Dense)
    assert {name.rpartition(".")[0] for name in random_tensors(TINY)} <= cells.keys()
    for name, parameter in net.parameters_and_names():
        assert name == parameter.name
    assert net.bert.encoder.layer[0].attention.self.num_heads == 3


def test_one_training_step_through_the_usual_wrapper(tmp_path, mode):
    class Loss(nn.Cell):
        def __init__(self, network):
            super().__init__(auto_prefix=False)
            self.network = network

        def construct(self, input_ids, attention_mask, token_type_ids, labels):
            return kernels.cross_entropy(self.network(input_ids, attention_mask, token_type_ids), labels)

    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path), dropout=0.0)
    trained = [p for p in net.get_parameters() if p.name.endswith(("query.weight", "value.weight"))]
    step = nn.TrainOneStepCell(Loss(net), nn.Adam(trained, 1e-2)).set_train()
    inputs = [*as_tensors(random_batch(TINY)), Tensor(np.array([0, 1, 2], np.int32))]
    losses = [float(step(*inputs).asnumpy()) for _ in range(5)]
    assert losses[-1] < losses[0] - 0.05


# Files and heads


@pytest.mark.parametrize(
    "spell",
    {
        "no prefix": lambda name: name.removeprefix("bert."),
        "LayerNorm names of 2018": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    }.values(),
)
def test_other_spellings_of_names(tmp_path, spell):
    tensors = {spell(name): values for name, values in random_tensors(TINY).items()}
    check_all_parameters(write_folder(tmp_path, tensors=tensors), random_tensors(TINY))


def test_position_numbers_and_pretraining_heads_are_ignored(tmp_path):
    extra = {
        "bert.embeddings.position_ids": np.arange(9)[None],
        "cls.predictions.bias": np.full(41, np.nan, np.float32),
        "cls.seq_relationship.weight": np.ones((2, 12), np.float32),
    }
    check_all_parameters(write_folder(tmp_path, tensors=random_tensors(TINY) | extra), random_tensors(TINY))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_become_float32(tmp_path, dtype):
    tensors = {name: values.astype(dtype) for name, values in random_tensors(TINY).items()}
    check_all_parameters(write_folder(tmp_path, tensors=tensors), tensors)


def test_a_model_in_shards(tmp_path):
    tensors = random_tensors(TINY)
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    shards = {"a.safetensors": dict(list(tensors.items())[:10]), "b.safetensors": dict(list(tensors.items())[10:])}
    for name, part in shards.items():
        save_file(part, folder / name)
    weight_map = {tensor: shard for shard, part in shards.items() for tensor in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    check_all_parameters(folder, tensors)


def check_all_parameters(folder, tensors):
    net = BertForSequenceClassification.from_pretrained(folder)
    parameters = {numpy_name(parameter.name): parameter for parameter in net.get_parameters()}
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == mindspore.float32
        np.testing.assert_array_equal(parameter.asnumpy(), tensors[name].astype(np.float32), err_msg=name)


def test_the_classifier_of_the_file_is_kept_where_it_fits(tmp_path):
    folder = write_folder(tmp_path)
    for num_labels in (None, 4):
        net = BertForSequenceClassification.from_pretrained(folder, num_labels=num_labels)
        assert not net.head_is_new
        assert net.config.num_labels == 4
        np.testing.assert_array_equal(net.classifier.weight.asnumpy(), random_tensors(TINY)["classifier.weight"])


def test_another_number_of_classes_starts_a_new_head_under_the_seed(tmp_path):
    config = TINY | {"hidden_size": 300, "num_hidden_layers": 1}
    folder = write_folder(tmp_path, config)
    heads = []
    for seed in (7, 7, 8):
        mindspore.set_seed(seed)
        net = BertForSequenceClassification.from_pretrained(folder, num_labels=50)
        assert net.head_is_new
        assert net.config.num_labels == 50
        np.testing.assert_array_equal(net.classifier.bias.asnumpy(), np.zeros(50))
        heads.append(net.classifier.weight.asnumpy())
    np.testing.assert_array_equal(heads[0], heads[1])
    assert np.abs(heads[0] - heads[2]).max() > 0.01
    assert heads[0].shape == (50, 300)
    assert heads[0].std() == pytest.approx(0.02, rel=0.05)


def test_without_a_classifier_the_configuration_counts_the_classes(tmp_path):
    tensors = {name: values for name, values in random_tensors(TINY).items() if "classifier" not in name}
    net = BertForSequenceClassification.from_pretrained(write_folder(tmp_path, tensors=tensors))
    assert net.head_is_new
    assert net.classifier.weight.shape == (4, 12)


def test_weights_start_normal_without_a_file():
    mindspore.set_seed(1)
    net = BertForSequenceClassification(BertConfig(vocab_size=500, hidden_size=48, num_hidden_layers=1))
    assert net.head_is_new
    for parameter in net.get_parameters():
        values = parameter.asnumpy()
        if parameter.name.endswith(("beta", "bias")):
            assert not values.any(), parameter.name
        elif parameter.name.endswith("gamma"):
            assert (values == 1).all(), parameter.name
        elif values.size > 1000:
            assert values.std() == pytest.approx(0.02, rel=0.1), parameter.name


def test_an_unknown_pooling_names_the_three(tmp_path):
    with pytest.raises(InputError, match=r"'max'.*pooler, cls, mean"):
        BertForSequenceClassification.from_pretrained(write_folder(tmp_path), pooling="max")
