"""A client written for MindPet 1.0.4 runs unchanged: it injects, assigns, shards, freezes, trains, saves and loads."""

import enum
import importlib
from types import SimpleNamespace

import mindspore
import mindspore.dataset
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import HeUniform, One, initializer
from mindspore.train import CheckpointConfig, Model

from mindpet.delta.adapter import AdapterDense
from mindpet.delta.lora import LoRADense
from mindpet.delta.ptuning2 import PrefixEncoder
from mindpet.graph import TrainableParamsCheckPoint, freeze_delta, load_trainable
from mindpet.graph.freeze_utils import freeze_modules
from mindpet.utils.version_control import get_dropout
from tests.delta.layers import randomise, strategies_of

SIZE, CLASSES, HEADS, TOKENS = 8, 3, 2, 3


class PetType(str, enum.Enum):
    LORA = "lora"
    PTUNING2 = "ptuning2"


class Linear(nn.Cell):
    """A client's own dense layer: no child of nn.Dense, its bias added by Add, its weight possibly (in, out)."""

    def __init__(self, in_channels, out_channels, has_bias=True, activation=None, transpose_b=True):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.has_bias = has_bias
        self.transpose_b = transpose_b
        self.param_init_type = mstype.float32
        self.dtype = mstype.float32
        shape = (out_channels, in_channels) if transpose_b else (in_channels, out_channels)
        self.weight = Parameter(initializer("normal", shape), name="weight")
        self.matmul = ops.MatMul(transpose_b=transpose_b)
        if has_bias:
            self.bias = Parameter(initializer("normal", (out_channels,)), name="bias")
            self.bias_add = ops.Add()
        self.activation = nn.get_activation(activation) if activation else None

    def construct(self, x):
        shape = x.shape
        output = self.matmul(x.reshape((-1, shape[-1])).astype(self.dtype), self.weight)
        if self.has_bias:
            output = self.bias_add(output, self.bias)
        if self.activation is not None:
            output = self.activation(output)
        return output.reshape((*shape[:-1], self.out_channels)).astype(x.dtype)


class Block(nn.Cell):
    def __init__(self, transpose_b):
        super().__init__()
        self.wq = Linear(SIZE, SIZE, has_bias=False, transpose_b=transpose_b)
        self.wk = Linear(SIZE, SIZE, activation="relu", transpose_b=transpose_b)
        self.dense = nn.Dense(SIZE, SIZE, activation="tanh")
        self.dropout = get_dropout(0.0)

    def construct(self, x):
        return self.dense(self.dropout(self.wq(x) + self.wk(x)))


class Network(nn.Cell):
    def __init__(self, transpose_b=True):
        super().__init__()
        self.blocks = nn.CellList([Block(transpose_b)])
        self.head = nn.Dense(SIZE, CLASSES)

    def construct(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.sum(1))


def _replace(old, dropout):
    """Return a LoRADense that works with what belongs to a Linear or an nn.Dense."""
    new = LoRADense(
        in_channels=old.in_channels,
        out_channels=old.out_channels,
        lora_rank=2,
        lora_alpha=4,
        lora_dropout=dropout,
        compute_dtype=old.dtype if isinstance(old, Linear) else old.weight.dtype,
        param_init_type=old.param_init_type if isinstance(old, Linear) else old.weight.dtype,
        has_bias=old.has_bias,
        activation=old.activation,
    )
    new.matmul, new.weight = old.matmul, old.weight
    if old.has_bias:
        new.bias, new.bias_add = old.bias, old.bias_add
    return new


def _inject(parent, names=("wq", "wk", "dense"), dropout=0.1):
    """Put a LoRADense in the place of every layer with one of these names, below `parent`."""
    for name, cell in parent.name_cells().items():
        if name in names:
            parent._cells[name] = _replace(cell, dropout)  # what MindFormers does: it keeps the cells' order
        else:
            _inject(cell, names, dropout)
    return parent


def _shard(layer, batch, inputs, outputs):
    layer.lora_dropout.dropout.shard(((batch, inputs),))
    layer.lora_a_matmul.shard(((batch, inputs), (1, inputs)))
    layer.lora_b_matmul.shard(((batch, 1), (outputs, 1)))
    layer.mul.shard(((batch, outputs), ()))
    layer.add.shard(((batch, outputs), (batch, outputs)))
    layer.matmul.shard(((batch, inputs), (outputs, inputs)))


def _values(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def _lora_layers(network):
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, LoRADense)]


def _injected(transpose_b):
    network = _inject(randomise(Network(transpose_b), spread=0.3))
    network.update_parameters_name()
    freeze_delta(network, PetType.LORA, None, ["*head*"])
    return network


def _batches():
    generator = np.random.default_rng(0)
    columns = {
        "x": generator.normal(size=(8, 2, SIZE)).astype(np.float32),
        "label": generator.integers(0, CLASSES, 8).astype(np.int32),
    }
    return mindspore.dataset.NumpySlicesDataset(columns, shuffle=False).batch(4)


@pytest.mark.parametrize("transpose_b", [True, False])
def test_injected_layers_compute_what_the_replaced_ones_did(mode, transpose_b):
    plain, injected = randomise(Network(transpose_b), spread=0.3), _injected(transpose_b)
    assert len(_lora_layers(injected)) == 3
    x = Tensor(np.random.default_rng(1).normal(size=(2, 2, SIZE)).astype(np.float32))
    np.testing.assert_array_equal(injected(x).asnumpy(), plain(x).asnumpy())
    kept = {name: value for name, value in _values(injected).items() if "_delta_" not in name}
    values = _values(plain)
    assert kept.keys() == values.keys()
    assert all((kept[name] == values[name]).all() for name in values)


@pytest.mark.parametrize("transpose_b", [True, False])
def test_a_client_freezes_trains_saves_and_loads(mode, transpose_b, tmp_path):
    network = _injected(transpose_b)
    trained = {parameter.name for parameter in network.trainable_params()}
    layers = [f"blocks.0.{name}" for name in ("wq", "wk", "dense")]
    lora = {f"{layer}.mindpet_delta_lora_{factor}" for layer in layers for factor in "ab"}
    assert trained == lora | {"head.weight", "head.bias"}

    start = _values(network)
    checkpoint = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(save_checkpoint_steps=4))
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    model = Model(network, loss, nn.Adam(network.trainable_params(), 0.01))
    model.train(2, _batches(), callbacks=[checkpoint], dataset_sink_mode=False)
    end = _values(network)
    assert {name for name in start if (start[name] != end[name]).any()} == trained

    file = str(tmp_path / "DELTA_CKP-2_2.ckpt")
    content = mindspore.load_checkpoint(file)
    assert content.keys() == trained
    for load in (lambda net: mindspore.load_param_into_net(net, content), lambda net: load_trainable(net, file)):
        again = _injected(transpose_b)
        load(again)
        assert all((value == end[name]).all() for name, value in _values(again).items())


def test_sharding_the_primitives_is_stored_and_changes_no_result(mode):
    network, other = (randomise(_injected(transpose_b=True)) for _ in range(2))
    for layer in _lora_layers(network):
        _shard(layer, 2, 1, 4)
        assert strategies_of(layer) == {
            "lora_dropout.dropout": ((2, 1),),
            "lora_a_matmul": ((2, 1), (1, 1)),
            "lora_b_matmul": ((2, 1), (4, 1)),
            "mul": ((2, 4), ()),
            "add": ((2, 4), (2, 4)),
            "matmul": ((2, 1), (4, 1)),
        }
    x = Tensor(np.random.default_rng(2).normal(size=(2, 2, SIZE)).astype(np.float32))
    np.testing.assert_array_equal(network(x).asnumpy(), other(x).asnumpy())


@pytest.mark.parametrize("prefix", ["mindpet", "tk"])
def test_old_names_are_read(tmp_path, prefix):
    """1.0.4 named the factors A and B where the cell was swapped in without renaming, and before that tk_delta."""
    network = _injected(transpose_b=True)
    wanted = {parameter.name: parameter + 1 for parameter in network.trainable_params()}
    old = [
        {
            "name": name.replace("mindpet_delta_lora_a", f"{prefix}_delta_lora_A").replace("lora_b", "lora_B"),
            "data": value,
        }
        for name, value in wanted.items()
    ]
    file = str(tmp_path / "old.ckpt")
    mindspore.save_checkpoint(old, file)
    with pytest.warns(UserWarning, match="unverified"):
        load_trainable(network, file)
    assert all(
        (parameter.asnumpy() == wanted[parameter.name].asnumpy()).all() for parameter in network.trainable_params()
    )


def test_the_arguments_go_by_position_as_in_1_0_4():
    start = HeUniform(negative_slope=5**0.5)
    layer = LoRADense(
        6,
        4,
        2,
        3,
        0.1,
        start,
        "zeros",
        mstype.float16,
        mstype.float32,
        weight_init="ones",
        has_bias=False,
        activation="relu",
    )
    assert (layer.lora_rank, layer.lora_alpha, layer.lora_dropout.p, layer.scaling) == (2, 3, 0.1, 1.5)
    assert layer.mindpet_delta_lora_a.dtype == mstype.float16
    assert layer.weight.asnumpy().min() == 1


@pytest.mark.parametrize("activation", ["gelu", nn.ReLU(), ops.Tanh(), None], ids=lambda item: type(item).__name__)
def test_an_activation_may_be_a_name_a_cell_a_primitive_or_none(activation):
    assert LoRADense(SIZE, 4, 2, 3, activation=activation)(Tensor(np.ones((2, SIZE), np.float32))).shape == (2, 4)


def test_a_tensor_that_holds_no_values_yet_can_start_a_factor():
    a, b = (Tensor(shape=shape, dtype=mstype.int8, init=One()) for shape in ((2, 6), (4, 2)))
    layer = LoRADense(6, 4, 2, 3, lora_a_init=a, lora_b_init=b)
    assert (layer.mindpet_delta_lora_a.asnumpy() == 1).all()
    assert (layer.mindpet_delta_lora_b.asnumpy() == 1).all()
    assert layer.mindpet_delta_lora_a.dtype == mstype.float32


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_an_unknown_non_linearity_meets_either_handler(error):
    with pytest.raises(error, match="non_linearity"):
        AdapterDense(6, 4, non_linearity="no_activation")


def test_an_adapter_tells_its_bottleneck():
    assert AdapterDense(6, 4, bottleneck_size=3).bottleneck_size == 3


class PrefixedAttention(nn.Cell):
    """An attention of GLM2's kind that prepends by hand, as the specification prints it."""

    def __init__(self):
        super().__init__()
        self.project = nn.Dense(SIZE, 3 * SIZE)
        self.concat_states = ops.Concat(2)
        self.concat_mask = ops.Concat(3)

    def add_prefix(self, prefix_key_value, key, value, attention_mask):
        prefix = prefix_key_value.astype(key.dtype)
        ones = attention_mask.new_ones((key.shape[0], 1, key.shape[2], TOKENS))
        return (
            self.concat_states((prefix[0], key)),
            self.concat_states((prefix[1], value)),
            self.concat_mask((ones, attention_mask)),
        )

    def construct(self, x, attention_mask, prefix_key_value):
        batch, length, _ = x.shape
        states = self.project(x).reshape((batch, length, 3, HEADS, SIZE // HEADS)).transpose((2, 0, 3, 1, 4))
        key, value, attention_mask = self.add_prefix(prefix_key_value, states[1], states[2], attention_mask)
        scores = ops.matmul(states[0], key.swapaxes(2, 3)) + (1 - attention_mask) * -1e4
        return ops.matmul(ops.softmax(scores, -1), value).swapaxes(1, 2).reshape((batch, length, SIZE))


class PrefixedNetwork(nn.Cell):
    def __init__(self):
        super().__init__()
        layers = 2
        self.prefix_encoder = PrefixEncoder(TOKENS, layers, HEADS, SIZE // HEADS, True, 4, 0.1)
        self.layers = nn.CellList([PrefixedAttention() for _ in range(layers)])
        self.head = nn.Dense(SIZE, CLASSES)

    def construct(self, x, attention_mask):
        prefix_key_values = self.prefix_encoder(x.shape[0])
        for index, layer in enumerate(self.layers):
            x = x + layer(x, attention_mask, prefix_key_values[index])
        return self.head(x.sum(1))


class WithLoss(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, attention_mask, labels):
        return ops.cross_entropy(self.network(x, attention_mask), labels)


def test_a_network_with_p_tuning_trains_its_prefixes(mode):
    network = PrefixedNetwork()
    freeze_delta(network, PetType.PTUNING2)
    freeze_modules(network, None, ["head*"])
    trained = {parameter.name for parameter in network.trainable_params()}
    assert {name.split(".")[0] for name in trained} == {"prefix_encoder", "head"}
    generator = np.random.default_rng(3)
    x = Tensor(generator.normal(size=(4, 5, SIZE)).astype(np.float32))
    labels = Tensor(generator.integers(0, CLASSES, 4).astype(np.int32))
    mask = Tensor(np.broadcast_to(np.tril(np.ones((5, 5), np.float32)), (4, 1, 5, 5)).copy())

    start = _values(network)
    step = nn.TrainOneStepCell(WithLoss(network), nn.Adam(network.trainable_params(), 0.01)).set_train()
    losses = [float(step(x, mask, labels).asnumpy()) for _ in range(4)]
    end = _values(network)
    assert {name for name in start if (start[name] != end[name]).any()} == trained
    assert losses[-1] < losses[0]


def test_a_prefix_encoder_is_called_with_a_batch_and_a_dtype(mode):
    encoder = PrefixEncoder(TOKENS, 2, HEADS, 4, False, 5, 0.0)
    assert [(prefix.shape, prefix.dtype) for prefix in encoder(6)] == [((2, 6, HEADS, TOKENS, 4), mstype.float16)] * 2
    assert encoder(6, mstype.float32)[1].dtype == mstype.float32
    config = SimpleNamespace(data_parallel=2, model_parallel=1, vocab_emb_dp=True)
    other = PrefixEncoder(TOKENS, 2, HEADS, 4, True, 5, 0.0, config, (2, 0, 1, 3, 4))
    assert other(6)[0].shape == (2, 6, TOKENS, HEADS, 4)


PATHS = {
    "mindpet.delta": ["AdapterDense", "LoRADense", "LowRankAdapterDense", "PrefixEncoder", "PrefixLayer", "RDropLoss"],
    "mindpet.delta.lora": ["LoRADense"],
    "mindpet.delta.ptuning2": ["PrefixEncoder"],
    "mindpet.graph": ["TrainableParamsCheckPoint", "freeze_delta", "freeze_from_config", "freeze_modules"],
    "mindpet.graph.ckpt_util": ["TrainableParamsCheckPoint"],
    "mindpet.graph.freeze_utils": ["freeze_delta", "freeze_from_config", "freeze_modules"],
    "mindpet.utils.constants": ["DEFAULT_FLAGS", "DEFAULT_MODES"],
    "mindpet.utils.exceptions": [
        "AbsolutePathError",
        "LinkPathError",
        "ModelConfigFreezeInfoError",
        "ReadYamlFileError",
        "UnexpectedError",
    ],
    "mindpet.utils.version_control": ["get_dropout"],
}


@pytest.mark.parametrize("path", PATHS)
def test_what_clients_import_is_there(path):
    module = importlib.import_module(path)
    assert all(hasattr(module, name) for name in PATHS[path])
