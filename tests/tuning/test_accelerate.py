"""Native twins: the numbers of the plain cells, everything else that may be done to a network, and what stays plain."""

import copy

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import mindpet
from mindpet import LoraConfig, accelerate, decelerate, kernels
from mindpet.delta.adapter import AdapterDense
from mindpet.delta.dora import DoRADense
from mindpet.delta.lora import LoRADense
from mindpet.delta.low_rank_adapter import LowRankAdapterDense
from mindpet.kernels.switch import missing
from mindpet.models.bert import BertForSequenceClassification
from mindpet.tuning.accelerate import plain_class
from mindpet.tuning.exchange.merged import write_merged_model
from mindpet.tuning.registry import METHODS
from tests.methods import batch, config_of, move_adapter, small_bert
from tests.tiny import write_bert

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no native kernels here: {missing()}")

INPUTS, OUTPUTS = 20, 17
SLOW = [pytest.mark.slow]
FLOAT = {"compute_dtype": mindspore.float32}


@pytest.fixture(autouse=True)
def float32_kernels():
    before = kernels.kernels_in_use()
    kernels.use_kernels("f32")
    yield
    kernels.use_kernels(before)


def lora(**options):
    return LoRADense(INPUTS, OUTPUTS, 3, 5, lora_b_init="normal", **options, **FLOAT)


def scaled_lora():
    cell = lora()
    cell.scaling = Parameter(Tensor(0.7, mindspore.float32), name="scale", requires_grad=False)
    return cell


def dropping_lora():
    cell = lora(lora_dropout=0.5)
    cell.lora_dropout.use_mask(Parameter(Tensor(3, mindspore.int32), name="step", requires_grad=False), 1, 2)
    return cell


LAYERS = {
    "dense": lambda: nn.Dense(INPUTS, OUTPUTS, activation="sigmoid"),
    "dense without bias": lambda: nn.Dense(INPUTS, OUTPUTS, has_bias=False),
    "lora": lambda: lora(activation="sigmoid"),
    "lora without bias": lambda: lora(has_bias=False),
    "lora with a scale": scaled_lora,
    "lora with dropout": dropping_lora,
    "adapter": lambda: AdapterDense(INPUTS, OUTPUTS, bottleneck_size=4, **FLOAT),
    "low-rank adapter": lambda: LowRankAdapterDense(INPUTS, OUTPUTS, **FLOAT),
}
OTHERS = {
    "layer norm": lambda: nn.LayerNorm((INPUTS,), epsilon=1e-3),
    "gelu": nn.GELU,
    "exact gelu": lambda: nn.GELU(approximate=False),
}


class Weighted(nn.Cell):
    """A scalar that depends on every output of a cell."""

    def __init__(self, cell):
        super().__init__(auto_prefix=False)
        self.cell = cell
        self.weigh = Tensor(np.random.default_rng(1).normal(size=64).astype(np.float32))

    def construct(self, *inputs):
        output = self.cell(*inputs)
        return (output * self.weigh[: output.shape[-1]]).sum()


def randomise(cell):
    generator = np.random.default_rng(0)
    for parameter in cell.get_parameters():
        if parameter.dtype == mindspore.float32 and parameter.ndim:
            parameter.set_data(Tensor(generator.normal(size=parameter.shape).astype(np.float32)))


def numbers(cell, parameters, inputs=None):
    """Return the weighted output and the gradients by the input and by the parameters."""
    x = np.random.default_rng(2).normal(size=(2, 5, INPUTS)).astype(np.float32)
    inputs = (Tensor(x),) if inputs is None else inputs
    position = 0 if inputs[0].dtype == mindspore.float32 else None
    value, gradients = mindspore.value_and_grad(Weighted(cell), position, parameters)(*inputs)
    by_input, by_parameters = gradients if position == 0 else (value, gradients)
    return [one.asnumpy() for one in (value, by_input, *by_parameters)]


def assert_close(found, expected):
    largest = max(np.abs(one).max() for one in expected)
    assert [one.shape for one in found] == [one.shape for one in expected]
    assert max(np.abs(one - other).max() for one, other in zip(found, expected, strict=True)) <= 1e-5 * largest


# A graph takes a second to compile: the fast tests have one of each operation.
IN_BOTH_MODES = [
    pytest.param(name, mode, marks=SLOW if mode == "graph" and name not in ("lora", "dense") else [])
    for name in LAYERS
    for mode in ("graph", "pynative")
]


@pytest.mark.parametrize("trains_bias", [False, True])
@pytest.mark.parametrize(("name", "mode"), IN_BOTH_MODES, indirect=["mode"])
def test_a_twin_computes_as_its_layer_and_hands_nothing_to_the_frozen_weight(name, mode, trains_bias, monkeypatch):
    cell = LAYERS[name]().set_train()
    randomise(cell)
    cell.weight.requires_grad = False
    if cell.has_bias:
        cell.bias.requires_grad = trains_bias
    trained = mindspore.ParameterTuple([cell.weight, *cell.trainable_params()])
    names = [one.name for one in cell.get_parameters()]
    expected = numbers(cell, trained)
    assert accelerate(cell).replaced[""] == plain_class(cell).__name__ == type(cell).__name__.removeprefix("Native")
    found = numbers(cell, trained)
    assert expected[2].any() == (mode == "graph")  # PyNative mode itself gives a frozen weight no gradient
    assert not found[2].any()
    assert_close(found[:2] + found[3:], expected[:2] + expected[3:])
    assert [one.name for one in cell.get_parameters()] == names
    assert_calls_kernels(cell, mode, monkeypatch)


def assert_calls_kernels(cell, mode, monkeypatch):
    for kernel in ("dense_frozen", "dense_trained", "lora_dense", "layer_norm", "gelu", "gelu_tanh"):
        monkeypatch.setattr(kernels, kernel, None)
    if mode == "pynative":
        with pytest.raises(TypeError, match="not callable"):
            cell(ops.ones((1, INPUTS)))


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_dense_layer_that_is_trained_whole(mode, has_bias, monkeypatch):
    cell = nn.Dense(INPUTS, OUTPUTS, has_bias=has_bias)
    randomise(cell)
    parameters = mindspore.ParameterTuple(cell.trainable_params())
    expected = numbers(cell, parameters)
    assert accelerate(cell).replaced
    assert_close(numbers(cell, parameters), expected)
    assert_calls_kernels(cell, mode, monkeypatch)


@pytest.mark.parametrize("name", OTHERS)
def test_normalisation_and_gelu(mode, name, monkeypatch):
    cell = OTHERS[name]()
    randomise(cell)
    parameters = mindspore.ParameterTuple(cell.trainable_params())
    expected = numbers(cell, parameters)
    accelerate(cell)
    assert_close(numbers(cell, parameters), expected)
    assert_calls_kernels(cell, mode, monkeypatch)


def test_a_frozen_normalisation_gets_no_gradient_until_it_trains_again(mode):
    cell = OTHERS["layer norm"]()
    randomise(cell)
    parameters = mindspore.ParameterTuple([cell.gamma, cell.beta])
    expected = numbers(cell, parameters)
    accelerate(cell)
    for trains in (False, True):
        for parameter in parameters:
            parameter.requires_grad = trains
        found = numbers(cell, parameters)
        assert_close(found[:2], expected[:2])
        assert [bool(one.any()) for one in found[2:]] == [trains, trains]
    assert_close(found, expected)


def attached(method="lora", accelerated=True, **fields):
    """Return a small BERT with random values and a moved adapter; equal arguments give equal numbers."""
    mindspore.set_seed(1)
    network = small_bert()
    mindpet.get_peft_model(network, config_of(method, **fields))
    move_adapter(network)
    if accelerated:
        assert accelerate(network).replaced
    return network


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in ("lora", "adapter", "bitfit") else SLOW) for name in METHODS]
)
def test_networks_with_any_method_train_alike(method):
    networks = [attached(method, accelerated) for accelerated in (False, True)]
    trained = [mindspore.ParameterTuple(network.set_train().trainable_params()) for network in networks]
    assert_close(*(numbers(*pair, batch()) for pair in zip(networks, trained, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "adapter", "bitfit"])
def test_a_step_of_training_in_one_graph(method):
    """The optimizer's graph has all gradients; afterwards the trained parameters are the same."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    after = []
    for accelerated in (False, True):
        network = attached(method, accelerated)
        optimizer = nn.SGD(network.trainable_params(), 0.5)
        nn.TrainOneStepCell(Weighted(network), optimizer)(*batch())
        after.append([one.asnumpy() for one in network.trainable_params()])
    assert_close(after[1], after[0])


def merge(network, folder):
    mindpet.merge(network)


def merge_and_unmerge(network, folder):
    mindpet.merge(network)
    network(*batch())
    mindpet.unmerge(network)


def switch(network, folder):
    mindpet.add_adapter(network, "second", LoraConfig(r=1, lora_alpha=9))
    network(*batch())
    mindpet.set_adapter(network, "second")
    move_adapter(network)


def disable(network, folder):
    mindpet.disable_adapter(network)


def save_move_and_load(network, folder):
    mindpet.save_adapter(network, folder / "adapter")
    move_adapter(network, seed=5)
    mindpet.unload(network)
    mindpet.load_adapter(network, folder / "adapter")


def unload(network, folder):
    mindpet.unload(network)


def stack(network, folder):
    mindpet.add_adapter(network, "second", LoraConfig(r=1))
    mindpet.stack_adapters(network, ["default", "second"])
    mindpet.set_adapter_index(network, [0, 1])


CHANGES = (merge, merge_and_unmerge, switch, disable, save_move_and_load, unload, stack)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_accelerated_network_is_changed_as_any_other(change, tmp_path):
    """Everything that mindpet does to a network gives what it gives without twins."""
    outputs = []
    for accelerated in (False, True):
        network = attached("lora", accelerated)
        (tmp_path / str(accelerated)).mkdir()
        before = network(*batch()).asnumpy()
        change(network, tmp_path / str(accelerated))
        outputs.append([before, network(*batch()).asnumpy()])
    assert_close(outputs[1], outputs[0])


def test_what_an_accelerated_network_saves_a_plain_one_loads_and_the_other_way_round(tmp_path):
    for saves, loads in ((True, False), (False, True)):
        saved, loaded = attached("lora", saves), attached("lora", loads)
        move_adapter(saved, seed=5)
        mindpet.save_adapter(saved, tmp_path / str(saves))
        mindpet.load_adapter(loaded, tmp_path / str(saves))  # its probe compares the outputs too
        assert_close([loaded(*batch()).asnumpy()], [saved(*batch()).asnumpy()])


def read_and_attached(folder):
    """Return a BERT that was read from a folder, with a moved LoRA and a trained head."""
    mindspore.set_seed(1)
    network = BertForSequenceClassification.from_pretrained(folder, num_labels=3)
    mindpet.get_peft_model(network, config_of("lora", modules_to_save=["classifier"]))
    move_adapter(network)
    return network


WRITERS = {
    "an adapter of PEFT": lambda network, source, out: mindpet.export_adapter(network, out),
    "a merged model": lambda network, source, out: write_merged_model(network, source, out),
    "a checkpoint": lambda network, source, out: mindspore.save_checkpoint(network, str(out / "all.ckpt")),
}


def test_everything_that_is_written_is_what_a_plain_network_writes(tmp_path):
    source = write_bert(tmp_path / "base")
    plain, native = read_and_attached(source), read_and_attached(source)
    assert accelerate(native).replaced
    for name, write in WRITERS.items():
        contents = []
        for network in (plain, native):
            out = tmp_path / f"{name} {len(contents)}"
            out.mkdir()
            write(network, source, out)
            contents.append({file.name: file.read_bytes() for file in out.iterdir()})
        assert contents[0] == contents[1], name
        assert contents[0], name
    restored = read_and_attached(source)
    accelerate(restored)
    move_adapter(restored, seed=5)
    mindspore.load_checkpoint(str(tmp_path / "a checkpoint 1" / "all.ckpt"), restored)
    assert_close([restored(*batch()).asnumpy()], [plain(*batch()).asnumpy()])


def test_methods_are_attached_to_an_accelerated_network():
    plain = attached("lora", accelerated=False)
    mindspore.set_seed(1)
    network = small_bert()
    accelerate(network)
    mindpet.get_peft_model(network, config_of("lora"))
    move_adapter(network)
    assert type(network.bert.encoder.layer[0].attention.self.query) is LoRADense
    assert_close([network(*batch()).asnumpy()], [plain(*batch()).asnumpy()])


def frozen_dense():
    cell = nn.Dense(INPUTS, OUTPUTS)
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    return cell


@pytest.mark.parametrize(
    "write",
    [
        lambda weight, values: weight.set_data(values),
        lambda weight, values: weight.copy_(values),
        lambda weight, values: mindspore.load_param_into_net(weight.cell, {weight.name: Parameter(values)}),
    ],
    ids=["set_data", "copy_", "load_param_into_net"],
)
def test_a_weight_that_changes_is_never_stale(mode, write):
    cell, x = frozen_dense(), ops.ones((1, INPUTS))
    accelerate(cell)
    cell.weight.cell = cell
    for factor in (1, 2):
        write(cell.weight, Tensor(np.full((OUTPUTS, INPUTS), factor, np.float32)))
        expected = factor * INPUTS + cell.bias.asnumpy()
        np.testing.assert_allclose(cell(x).asnumpy()[0], expected, rtol=1e-5)


def test_a_weight_that_trains_again_gets_its_gradient(mode):
    cell, x = frozen_dense(), ops.ones((1, INPUTS))
    accelerate(cell)
    cell(x)
    weight = cell.weight

    def gradient():
        return mindspore.value_and_grad(Weighted(cell), None, weight)(x)[1].asnumpy()

    assert not gradient().any()
    weight.requires_grad = True
    expected = np.tile(Weighted(cell).weigh.asnumpy()[:OUTPUTS, None], (1, INPUTS))
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5)


def test_a_copy_is_accelerated_and_has_parameters_of_its_own():
    cell, x = frozen_dense(), ops.ones((1, INPUTS))
    accelerate(cell)
    twin = copy.deepcopy(cell)
    assert type(twin) is type(cell)
    before = cell(x).asnumpy()
    twin.weight.set_data(twin.weight * 0)
    assert (cell(x).asnumpy() == before).all()
    np.testing.assert_allclose(twin(x).asnumpy()[0], cell.bias.asnumpy(), rtol=1e-6)


def test_it_can_be_undone_and_done_twice():
    network = attached("lora", accelerated=False)
    kinds = [type(cell) for _, cell in network.cells_and_names()]
    first = accelerate(network)
    assert accelerate(network) == first
    query = network.bert.encoder.layer[0].attention.self.query
    assert isinstance(query, LoRADense)
    assert type(query) is not LoRADense
    decelerate(network)
    assert [type(cell) for _, cell in network.cells_and_names()] == kinds


def sharded():
    cell = frozen_dense()
    cell.matmul.shard(((2, 1), (1, 1)))
    return cell


def exchanged():
    cell = frozen_dense()
    cell.matmul = ops.BatchMatMul(transpose_b=True)
    return cell


def transposed():
    cell = frozen_dense()
    cell.matmul = ops.MatMul()
    return cell


def in_float16():
    cell = LoRADense(INPUTS, OUTPUTS, 3, 5)
    cell.weight.requires_grad = False
    return cell


def decomposed():
    return DoRADense(INPUTS, OUTPUTS, 3, 5, **FLOAT)


LEFT = {
    "its weight is trained": lora,
    "its primitive matmul is sharded": sharded,
    "its primitive matmul was exchanged": exchanged,
    "its weight has the shape (inputs, outputs)": transposed,
    "it multiplies in Float16, and native kernels in Float32": in_float16,
    "there is no native twin for it": decomposed,
    "it normalises more than the last axis": lambda: nn.LayerNorm((3, 4), 1, 1),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_stays_plain_is_said_with_the_reason(reason):
    cell = LEFT[reason]()
    kind = type(cell)
    report = accelerate(nn.SequentialCell([cell]))
    assert type(cell) is kind
    assert not report.replaced
    assert str(report) == f"plain: 0: {kind.__name__}: {reason}"


def test_without_native_kernels_nothing_is_replaced():
    kernels.use_kernels("off")
    report = accelerate(frozen_dense())
    assert not report.replaced
    assert list(report.left.values()) == ["Dense: no native kernels: plain (chosen)"]


def test_kernels_that_are_switched_off_afterwards_are_not_used(monkeypatch):
    cell, x = frozen_dense(), ops.ones((1, INPUTS))
    expected = cell(x).asnumpy()
    accelerate(cell)
    kernels.use_kernels("off")
    monkeypatch.setattr(kernels, "dense_frozen", None)
    assert (cell(x).asnumpy() == expected).all()


@pytest.mark.parametrize("function", [accelerate, decelerate])
def test_what_is_no_network_is_refused(function):
    with pytest.raises(TypeError, match=r"the network is a list; give a mindspore\.nn\.Cell"):
        function([])
