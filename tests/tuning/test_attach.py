import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta.lora import LoRADense
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.config import LoraConfig
from mindpet.utils.exceptions import InputError


class _Block(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query = nn.Dense(4, 4)
        self.key = nn.Dense(4, 4)
        self.value = nn.Dense(4, 4, activation="tanh")

    def construct(self, x):
        return self.query(x) + self.key(x) * self.value(x)


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.blocks = nn.CellList([_Block(), _Block()])
        self.sequence = nn.SequentialCell(nn.Dense(4, 4), nn.ReLU())
        self.shared = self.sequence[0]
        self.classifier = nn.Dense(4, 2)

    def construct(self, x):
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.sequence(x) + self.shared(x))


def _input():
    return Tensor(np.random.default_rng(0).normal(size=(3, 4)), mstype.float32)


def _attach(network, **fields):
    return get_peft_model(network, LoraConfig(**fields))


def test_attaching_changes_no_output_no_parameter_and_no_name(mode):
    network, plain = _Network(), _Network()
    before = {parameter.name: parameter for parameter in network.get_parameters()}
    for parameter in plain.get_parameters():
        parameter.set_data(before[parameter.name])
    assert _attach(network, modules_to_save=["classifier"]) is network
    after = {parameter.name: parameter for parameter in network.get_parameters()}
    assert {name: id(parameter) for name, parameter in before.items()}.items() <= {
        name: id(parameter) for name, parameter in after.items()
    }.items()
    added = set(after) - set(before)
    assert added == {
        f"blocks.{n}.{name}.mindpet_delta_lora_{letter}"
        for n in (0, 1)
        for name in ("query", "value")
        for letter in "ab"
    }
    trained = {parameter.name for parameter in network.trainable_params()}
    assert trained == added | {"classifier.weight", "classifier.bias"}
    np.testing.assert_array_equal(network(_input()).asnumpy(), plain(_input()).asnumpy())


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (["query"], {"blocks.0.query", "blocks.1.query"}),
        (["blocks.1.value"], {"blocks.1.value"}),
        (["1.value", "key"], {"blocks.1.value", "blocks.0.key", "blocks.1.key"}),
        (["sequence.0"], {"sequence.0"}),
    ],
)
def test_targets_are_names_or_path_suffixes(targets, adapted):
    network = _attach(_Network(), target_modules=targets)
    assert {path for path, cell in network.cells_and_names() if isinstance(cell, LoRADense)} == adapted


def test_a_shared_layer_is_replaced_once_at_both_places():
    network = _attach(_Network(), target_modules=["sequence.0"])
    assert isinstance(network.shared, LoRADense)
    assert network.shared is network.sequence[0]


def test_the_branches_draw_their_first_values_in_the_order_of_the_network():
    mindspore.set_seed(0)
    network = _attach(_Network(), target_modules=["value", "query", "key"])
    found = [cell.mindpet_delta_lora_a for _, cell in network.cells_and_names() if isinstance(cell, LoRADense)]
    mindspore.set_seed(0)
    plain = _Network()  # draws too
    expected = [
        LoRADense.from_dense(layer, LoraConfig().r, LoraConfig().lora_alpha).mindpet_delta_lora_a
        for block in plain.blocks
        for layer in (block.query, block.key, block.value)
    ]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.asnumpy(), other.asnumpy())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"target_modules": ["querry"]}, "target_modules: 'querry'.*nearest: query"),
        ({"target_modules": ["uery"]}, "'uery' is the name or path suffix of no nn.Dense"),
        ({"target_modules": ["blocks.0"]}, "no nn.Dense cell"),
        ({"modules_to_save": ["clasifier"]}, "modules_to_save: 'clasifier'.*nearest: classifier"),
    ],
)
def test_an_entry_without_a_match_changes_nothing(fields, said):
    network = _Network()
    before = [(path, id(cell)) for path, cell in network.cells_and_names()]
    with pytest.raises(InputError, match=said):
        _attach(network, **fields)
    assert [(path, id(cell)) for path, cell in network.cells_and_names()] == before
    assert all(parameter.requires_grad for parameter in network.get_parameters())


def test_attaching_twice_is_refused():
    network = _attach(_Network())
    with pytest.raises(InputError, match="has LoRA layers already"):
        _attach(network)


def test_only_the_branch_learns_and_in_the_given_dtype(mode):
    network = get_peft_model(_Network(), LoraConfig(r=2, target_modules=["query"]), compute_dtype=mstype.float16)
    layer = network.blocks[0].query
    assert (layer.compute_dtype, layer.lora_rank) == (mstype.float16, 2)
    frozen = {p.name: p.asnumpy().copy() for p in network.get_parameters() if not p.requires_grad}
    loss = nn.WithLossCell(network, nn.MSELoss())
    step = nn.TrainOneStepCell(loss, nn.SGD(network.trainable_params(), 0.1))
    first = step(_input(), Tensor(np.ones((3, 2)), mstype.float32)).asnumpy()
    second = step(_input(), Tensor(np.ones((3, 2)), mstype.float32)).asnumpy()
    assert second < first
    for parameter in network.get_parameters():
        if parameter.name in frozen:
            np.testing.assert_array_equal(parameter.asnumpy(), frozen[parameter.name])
