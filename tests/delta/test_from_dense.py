"""`from_dense` takes a layer over; a client that swaps cells by hand gets what it expects."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta import AdapterDense, LoRADense, LowRankAdapterDense
from tests.delta.layers import (
    DENSE_LAYERS,
    INPUTS,
    NUMPY,
    OUTPUTS,
    Side,
    random_input,
    randomise,
    strategies_of,
    values_of,
)


def _dense(dtype=mstype.float32, **arguments):
    return randomise(nn.Dense(INPUTS, OUTPUTS, dtype=dtype, **arguments))


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_the_result_equals_the_base_layer_exactly(mode, dtype):
    """Save in float16 graphs on a CPU: there MindSpore fuses neighbours and rounds between fewer of them, by an ulp."""
    ulp = 2.0**-10 if (mode, dtype) == ("graph", mstype.float16) else 0
    bases = [_dense(dtype), _dense(dtype, has_bias=False), _dense(dtype, activation="gelu")]
    cells = [layer.from_dense(base) for base in bases for layer in DENSE_LAYERS.values()]
    for shape in ((3,), (2, 3), (2, 1, 3)):
        x = Tensor(random_input((*shape, INPUTS), NUMPY[dtype]))
        outputs = iter(Side(cells)(x))
        for base in bases:
            plain = base(x)
            for _ in DENSE_LAYERS:
                output = next(outputs)
                assert output.dtype == plain.dtype
                np.testing.assert_allclose(output.asnumpy(), plain.asnumpy(), rtol=ulp, atol=ulp)
        if mode == "graph":
            break


@pytest.mark.parametrize("layer", DENSE_LAYERS.values(), ids=DENSE_LAYERS)
def test_the_very_objects_of_the_base_are_used(layer):
    base = _dense(activation="relu")
    base.weight.name, base.bias.name = "block.query.weight", "block.query.bias"
    base.weight.requires_grad = False
    base.matmul.shard(((2, 1), (1, 1)))
    base.bias_add.shard(((2, 1), (1,)))
    base.set_train()
    cell = layer.from_dense(base)
    for attribute in ("weight", "bias", "matmul", "bias_add", "activation"):
        assert getattr(cell, attribute) is getattr(base, attribute)
    assert (cell.weight.name, cell.bias.name) == ("block.query.weight", "block.query.bias")
    assert not cell.weight.requires_grad
    assert cell.training
    assert strategies_of(cell)["matmul"] == ((2, 1), (1, 1))
    assert strategies_of(cell)["bias_add"] == ((2, 1), (1,))
    added = [p.name for p in cell.get_parameters() if p is not base.weight and p is not base.bias]
    assert added
    assert all(name.startswith(("block.query.mindpet_delta_", "block.query.mindpet_state_")) for name in added)


@pytest.mark.parametrize("layer", DENSE_LAYERS.values(), ids=DENSE_LAYERS)
def test_no_parameter_of_the_base_is_renamed(layer):
    class Block(nn.Cell):
        def __init__(self):
            super().__init__()
            self.query = nn.Dense(INPUTS, OUTPUTS, activation="prelu")

    block = Block()
    before = [(parameter.name, parameter) for parameter in block.get_parameters()]
    cell = layer.from_dense(block.query)
    assert [name for name, _ in before] == ["query.weight", "query.bias", "query.activation.w"]
    assert all(parameter.name == name for name, parameter in before)
    assert {id(parameter) for _, parameter in before} <= {id(parameter) for parameter in cell.get_parameters()}
    assert len({parameter.name for parameter in cell.get_parameters()}) == len(list(cell.get_parameters()))
    assert all(parameter.name.startswith("query.") for parameter in cell.get_parameters())


@pytest.mark.parametrize("layer", DENSE_LAYERS.values(), ids=DENSE_LAYERS)
def test_the_added_dtypes_are_those_asked_for(layer):
    base = _dense(mstype.float16)
    assert layer.from_dense(base).compute_dtype == mstype.float16
    assert layer.from_dense(_dense()).compute_dtype == mstype.float32
    cell = layer.from_dense(base, param_init_type=mstype.float16, compute_dtype=mstype.float32)
    assert cell.compute_dtype == mstype.float32
    assert {p.dtype for p in cell.trainable_params()} == {mstype.float16}


@pytest.mark.parametrize(
    "stranger",
    [None, nn.ReLU(), nn.Conv2d(1, 1, 1), LoRADense(6, 4, 2, 3), ops.MatMul()],
    ids=lambda s: type(s).__name__,
)
def test_what_computes_otherwise_is_refused(stranger):
    for layer in DENSE_LAYERS.values():
        with pytest.raises(TypeError, match=f"{type(stranger).__name__}; accepted is an nn.Dense"):
            layer.from_dense(stranger)


def test_a_child_that_says_so_is_taken_over(mode):
    class Quiet(nn.Dense):
        computes_as_dense = True

        def construct(self, x):
            return super().construct(x)

    base = Quiet(INPUTS, OUTPUTS)
    assert LoRADense.from_dense(base, 2, 3).weight is base.weight


def test_wrong_arguments_raise_what_the_class_raises():
    with pytest.raises(TypeError, match="lora_rank"):
        LoRADense.from_dense(_dense(), 2.0, 3)
    with pytest.raises(ValueError, match="reduction_factor"):
        LowRankAdapterDense.from_dense(_dense(), OUTPUTS + 1)
    with pytest.raises(ValueError, match="up_init"):
        AdapterDense.from_dense(_dense(), up_init="no_initializer")


def test_the_up_projection_starts_as_told():
    for layer in (DENSE_LAYERS["adapter_dense"], DENSE_LAYERS["low_rank_adapter_dense"]):
        first = {
            name: abs(value).max() for name, value in values_of(layer.from_dense(_dense(), up_init="ones")).items()
        }
        assert sum(value == 1 for value in first.values()) == 1


def test_scaling_may_be_a_parameter_that_the_graph_reads_anew(mode):
    layer = randomise(LoRADense(INPUTS, OUTPUTS, 2, 3, compute_dtype=mstype.float32))
    x = Tensor(random_input((3, INPUTS)))
    full = layer(x).asnumpy()
    plain = x.asnumpy() @ layer.weight.asnumpy().T + layer.bias.asnumpy()
    layer = randomise(LoRADense(INPUTS, OUTPUTS, 2, 3, compute_dtype=mstype.float32))
    layer.scaling = Parameter(Tensor(1.5, mstype.float32), name="scaling", requires_grad=False)
    assert np.allclose(layer(x).asnumpy(), full, atol=1e-5)
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    assert np.allclose(layer(x).asnumpy(), plain, atol=1e-5)


def test_no_dropout_is_reached_at_rate_zero(mode):
    class Refuse(nn.Cell):
        def construct(self, x):
            raise RuntimeError("the dropout was reached")

    x = Tensor(random_input((3, INPUTS)))
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3).set_train()
    layer.lora_dropout.dropout = Refuse()
    assert np.isfinite(layer(x).asnumpy()).all()
    layer = LoRADense(INPUTS, OUTPUTS, 2, 3, 0.5).set_train()
    layer.lora_dropout.dropout = Refuse()
    with pytest.raises(RuntimeError, match="the dropout was reached"):
        layer(x).asnumpy()


def test_dropout_thins_the_branch_in_training_only(mode):
    unit = Tensor(np.eye(INPUTS, dtype=np.float32))

    def branch_alone():
        plain = {"weight_init": "zeros", "has_bias": False, "compute_dtype": mstype.float32}
        return LoRADense(INPUTS, INPUTS, INPUTS, INPUTS, 0.25, unit, unit, **plain)

    x = np.abs(random_input((200, INPUTS))) + 1
    assert np.allclose(branch_alone()(Tensor(x)).asnumpy(), x)
    output = branch_alone().set_train()(Tensor(x)).asnumpy()
    kept = output != 0
    assert np.allclose(output[kept], x[kept] / 0.75, rtol=1e-5)
    assert 0.65 < kept.mean() < 0.85


class _Attention(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query = nn.Dense(INPUTS, INPUTS)
        self.value = nn.Dense(INPUTS, INPUTS, has_bias=False, activation="tanh")

    def construct(self, x):
        return self.value(self.query(x))


class _Linear(nn.Dense):
    """A client's own layer: weight (in, out), the bias added by Add."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.matmul = ops.MatMul(transpose_b=False)
        self.weight = Parameter(Tensor(random_input((inputs, outputs), seed=9)), name="weight")
        self.bias_add = ops.Add()


def _swap_by_hand(network):
    """Replace each dense layer as a client does that knows LoRADense's attributes."""
    for parent in [network, *network.cells()]:
        for name, child in list(parent.name_cells().items()):
            if isinstance(child, nn.Dense):
                lora = LoRADense(
                    child.in_channels,
                    child.out_channels,
                    lora_rank=2,
                    lora_alpha=4,
                    lora_dropout=0.0,
                    param_init_type=mstype.float32,
                    compute_dtype=mstype.float32,
                    has_bias=child.has_bias,
                    activation=child.activation,
                )
                lora.matmul = child.matmul
                lora.weight = child.weight
                if child.has_bias:
                    lora.bias = child.bias
                    lora.bias_add = child.bias_add
                lora.lora_dropout.dropout.shard(((2, 1),))
                lora.lora_a_matmul.shard(((2, 1), (1, 1)))
                lora.lora_b_matmul.shard(((2, 1), (1, 1)))
                lora.mul.shard(((2, 1), ()))
                lora.add.shard(((2, 1), (2, 1)))
                setattr(parent, name, lora)
    return network


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.attention = _Attention()
        self.head = _Linear(INPUTS, OUTPUTS)

    def construct(self, x):
        return self.head(self.attention(x))


def test_a_client_that_swaps_layers_by_hand_keeps_the_network_and_trains_it(mode):
    network = _Network()
    x = Tensor(random_input((3, INPUTS)))
    before = network(x).asnumpy()
    kept = [network.attention.query.weight, network.head.weight]
    swapped = _swap_by_hand(network)
    assert [type(cell) for cell in (swapped.attention.query, swapped.attention.value, swapped.head)] == [LoRADense] * 3
    assert swapped.attention.query.weight is kept[0]
    assert swapped.head.weight is kept[1]

    class Caller(nn.Cell):
        """A wrapper made after the swap, as a graph is compiled once."""

        def __init__(self):
            super().__init__()
            self.inner = swapped

        def construct(self, x):
            return self.inner(x)

    assert np.array_equal(Caller()(x).asnumpy(), before)
    for parameter in swapped.get_parameters():
        parameter.requires_grad = "mindpet_delta" in parameter.name
    step = nn.TrainOneStepCell(Loss(swapped), nn.Adam(swapped.trainable_params(), 0.05)).set_train()
    losses = [float(step(x).asnumpy()) for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert np.array_equal(kept[1].asnumpy(), random_input((INPUTS, OUTPUTS), seed=9))


class Loss(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x):
        return (self.network(x) - 1).square().mean()


def test_only_the_factors_get_a_gradient_when_the_base_is_frozen(mode):
    layer = LoRADense.from_dense(_dense(), 2, 3)
    for parameter in (layer.weight, layer.bias):
        parameter.requires_grad = False
    assert [p.name for p in layer.trainable_params()] == ["mindpet_delta_lora_a", "mindpet_delta_lora_b"]
    x = Tensor(random_input((3, INPUTS)))
    by_a, by_b = mindspore.grad(Loss(layer), None, layer.trainable_params())(x)
    assert not by_a.asnumpy().any()  # lora_b is still zero
    assert by_b.asnumpy().any()
