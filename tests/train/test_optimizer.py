import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.train.optimizer import build_optimizer, linear_schedule


def test_the_schedule_rises_to_its_peak_and_falls_towards_zero():
    rates = linear_schedule(1.0, 10, 0.2)
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.0), (1, 0.9), (3, 0.5), (100, 0.99)])
def test_the_schedule_has_a_positive_rate_for_each_step(steps, ratio):
    rates = linear_schedule(3e-4, steps, ratio)
    assert len(rates) == steps
    assert all(0 < rate <= 3e-4 for rate in rates)


class _Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.body = Parameter(Tensor(np.full((2, 2), 2.0), mstype.float32), name="body")
        self.bias = Parameter(Tensor(np.full(2, 2.0), mstype.float32), name="bias")
        self.head = Parameter(Tensor(np.full((2, 2), 2.0), mstype.float32), name="classifier.weight")
        self.frozen = Parameter(Tensor(np.full((2, 2), 2.0), mstype.float32), name="frozen", requires_grad=False)

    def construct(self, x):
        return (x * self.body * self.head * self.frozen + self.bias).sum()


def test_matrices_decay_vectors_do_not_and_the_head_has_its_own_rate(mode):
    network = _Network()
    optimizer = build_optimizer(
        network,
        steps=1,
        learning_rate=0.1,
        head_learning_rate=0.4,
        warmup_ratio=0.0,
        weight_decay=0.5,
        is_head=lambda name: name.startswith("classifier."),
    )
    nn.TrainOneStepCell(network, optimizer)(Tensor(np.zeros((2, 2)), mstype.float32))
    # The gradients of the matrices are zero, so that only the decay moves them.
    np.testing.assert_allclose(network.body.asnumpy(), 2.0 * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(network.head.asnumpy(), 2.0 * (1 - 0.4 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(network.frozen.asnumpy(), 2.0)
    # The bias has gradient 4 and Adam's first step without bias correction: 0.1 * 4 / (sqrt(0.001 * 16) + eps).
    np.testing.assert_allclose(network.bias.asnumpy(), 2.0 - 0.1 * 0.4 / np.sqrt(0.016), rtol=1e-5)


class _ManyParameters(nn.Cell):
    """A product of parameters of several kinds, some of them after one of another group."""

    def __init__(self):
        super().__init__()
        names = ("a.weight", "a.bias", "b.weight", "classifier.weight", "classifier.bias", "c.weight", "c.bias")
        values = np.random.default_rng(0).uniform(0.5, 1.5, (7, 3, 3))
        shapes = {name: (3,) if name.endswith("bias") else (3, 3) for name in names}
        tensors = {
            name: Tensor(value[0] if len(shapes[name]) == 1 else value, mstype.float32)
            for name, value in zip(names, values, strict=True)
        }
        self.all = ParameterTuple([Parameter(tensors[name], name=name) for name in names])

    def construct(self, x):
        for parameter in self.all:
            x = ops.sin(x * parameter)
        return x.sum()


def test_the_steps_and_the_state_are_those_of_mindspores_optimizer(mode):
    ours, mindspores = _ManyParameters(), _ManyParameters()
    rates = {"steps": 5, "learning_rate": 0.1, "head_learning_rate": 0.3, "warmup_ratio": 0.4, "weight_decay": 0.2}
    optimizer = build_optimizer(ours, is_head=lambda name: name.startswith("classifier."), **rates)
    places = {p.name: p for p in mindspores.trainable_params()}
    groups = [
        {
            "params": [places[name] for name in names],
            "lr": linear_schedule(rate, 5, 0.4),
            "weight_decay": decay,
        }
        for names, rate, decay in (
            (("a.weight", "b.weight", "c.weight"), 0.1, 0.2),
            (("a.bias", "c.bias"), 0.1, 0.0),
            (("classifier.weight",), 0.3, 0.2),
            (("classifier.bias",), 0.3, 0.0),
        )
    ]
    reference = nn.AdamWeightDecay(groups, learning_rate=linear_schedule(0.1, 5, 0.4))
    steps = [nn.TrainOneStepCell(*pair) for pair in ((ours, optimizer), (mindspores, reference))]
    start = ours.all[0].asnumpy().copy()
    for row in np.random.default_rng(1).normal(size=(5, 3, 3)):
        losses = [step(Tensor(row, mstype.float32)).asnumpy() for step in steps]
        assert losses[0] == losses[1]
    assert not np.array_equal(ours.all[0].asnumpy(), start)
    states = [{p.name: p.asnumpy() for p in one.get_parameters()} for one in (optimizer, reference)]
    assert list(states[0]) == list(states[1])
    for name, values in states[0].items():
        np.testing.assert_array_equal(values, states[1][name], err_msg=name)
    assert states[0]["global_step"] == 5
