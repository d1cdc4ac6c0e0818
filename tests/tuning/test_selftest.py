"""The self-test passes what is right, and sees what is wrong."""

import json
import re

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, ops

import mindpet.delta
from mindpet.delta import LoRADense, PrefixEncoder, PrefixLayer, RDropLoss
from mindpet.delta._bottleneck import BottleneckLayer
from mindpet.delta._cases import randomise, values_of
from mindpet.tuning import _trials
from mindpet.tuning.selftest import DTYPES, TOLERANCES, describe_selftest, measure, plan
from mindpet.utils.exceptions import InputError

TRIALS = {trial.layer: trial for trial in _trials.TRIALS}


def _measure(layers=TRIALS, mode="PyNative", dtypes=("float32",)):
    return [measure(case) for case in plan("CPU", dtypes) if case.mode == mode and case.trial.layer in layers]


def test_every_public_layer_is_tried():
    inside_others = {"LowRankLinear", "make_projection"}
    forms = {"freeze_delta (BitFit)", "IA3Dense (feedforward)"}
    assert set(TRIALS) == set(mindpet.delta.__all__) - inside_others | forms


@pytest.mark.parametrize("device", DTYPES)
def test_the_plan_holds_every_layer_dtype_and_mode_once(device):
    cases = [(case.trial.layer, case.dtype, case.mode) for case in plan(device)]
    assert len(set(cases)) == len(cases) == len(TRIALS) * len(DTYPES[device]) * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("GPU",), "runs on CPU and Ascend, not on GPU"),
        (("CPU", ["float32", "bfloat16"]), "bfloat16 cannot be tested on CPU; choose from float32, float16"),
        (("Ascend", ["int8"]), "int8 cannot be tested"),
    ],
)
def test_what_cannot_be_tested_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        plan(*arguments)


def test_all_layers_pass_in_pynative_mode():
    before = mindspore.get_context("mode")
    records = _measure(dtypes=DTYPES["CPU"])
    assert [record for record in records if not record.passed] == []
    assert all(0 <= record.forward_error <= TOLERANCES[record.dtype].forward for record in records)
    assert all(0 < record.gradient_error <= TOLERANCES[record.dtype].gradient for record in records)
    assert mindspore.get_context("mode") == before


@pytest.mark.slow
def test_all_layers_pass_in_graph_mode():
    records = _measure(mode="graph", dtypes=DTYPES["CPU"])
    assert [record for record in records if not record.passed] == []


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_rounding_each_step_of_a_formula_stays_within_the_tolerance(trial):
    """NumPy rounds to float16 after every operation, which no device does worse."""
    for seed in range(4):
        values = values_of(randomise(trial.build(mindspore.float32), seed))
        values = {name.removeprefix("layer."): value for name, value in values.items()}
        exact = trial.formula(trial.inputs, values)
        narrow = {name: value.astype(np.float16) for name, value in values.items()}
        rounded = trial.formula([item.astype(np.float16) for item in trial.inputs], narrow)
        for one, other in zip(rounded, exact, strict=True):
            assert np.abs(one - other).max() <= TOLERANCES["float16"].forward / 2 * np.abs(other).max()


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
def test_every_dtype_holds_the_inputs_and_parameters_exactly(trial):
    values = values_of(randomise(trial.build(mindspore.float32)))
    for array in (*trial.inputs, *values.values()):
        assert np.array_equal(array.astype(np.float16), array)
        narrow = Tensor(array, mindspore.float32).astype(mindspore.bfloat16).astype(mindspore.float32)
        assert np.array_equal(narrow.asnumpy(), array)


class AnotherWeight(RDropLoss):
    def construct(self, logits, label_ids):
        return super().construct(logits, label_ids, 8)


def _double_the_scale(monkeypatch):
    make = LoRADense.__init__

    def make_wrong(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        self.scaling *= 2

    monkeypatch.setattr(LoRADense, "__init__", make_wrong)


def _spoil_the_value(monkeypatch):
    construct = PrefixLayer.construct
    monkeypatch.setattr(PrefixLayer, "construct", lambda self: (construct(self)[0], construct(self)[1] * float("nan")))


def _swap_key_and_value(monkeypatch):
    construct = PrefixLayer.construct
    monkeypatch.setattr(PrefixLayer, "construct", lambda self: construct(self)[::-1])


def _leave_out_the_residual(monkeypatch):
    construct = BottleneckLayer.construct
    monkeypatch.setattr(BottleneckLayer, "construct", lambda self, x: construct(self, x) - x)


def _transpose_heads_and_tokens(monkeypatch):
    make = PrefixEncoder.__init__

    def make_wrong(self, *arguments, **keywords):
        make(self, *arguments, **keywords)
        self.out_perm = (2, 0, 1, 3, 4)

    monkeypatch.setattr(PrefixEncoder, "__init__", make_wrong)


def _lose_the_gradient(monkeypatch):
    branch = LoRADense.branch
    monkeypatch.setattr(LoRADense, "branch", lambda self, rows: ops.stop_gradient(branch(self, rows)))


def _raise(monkeypatch):
    def construct(self, logits, label_ids):
        raise RuntimeError("\nno kernel for this device\nand a page of details")

    monkeypatch.setattr(RDropLoss, "construct", construct)


def _overflow(monkeypatch):
    branch = LoRADense.branch
    monkeypatch.setattr(LoRADense, "branch", lambda self, rows: branch(self, rows) * float("inf"))


WRONG = {
    "scale doubled": (_double_the_scale, {"LoRADense"}, "output is off"),
    "gradient lost": (_lose_the_gradient, {"LoRADense"}, "gradient of .* is off"),
    "not finite": (_overflow, {"LoRADense"}, "output is off by (nan|inf)"),
    "the second output not finite": (_spoil_the_value, {"PrefixLayer"}, "output is off by nan"),
    "residual left out": (
        _leave_out_the_residual,
        {"AdapterLayer", "AdapterDense", "LowRankAdapterLayer", "LowRankAdapterDense"},
        "output is off",
    ),
    "key and value swapped": (_swap_key_and_value, {"PrefixLayer"}, "output is off"),
    "heads and tokens swapped": (_transpose_heads_and_tokens, {"PrefixEncoder"}, "output is off"),
    "no kernel": (_raise, {"RDropLoss"}, "RuntimeError: no kernel for this device$"),
    "another weight of the divergence": (
        lambda monkeypatch: monkeypatch.setattr(_trials, "RDropLoss", AnotherWeight),
        {"RDropLoss"},
        "output is off",
    ),
    "copies apart": (
        lambda monkeypatch: monkeypatch.setattr(
            _trials, "rdrop_repeat", lambda *items: tuple(ops.concat((item, item)) for item in items)
        ),
        {"rdrop_repeat"},
        "output is off",
    ),
    "too few copies": (
        lambda monkeypatch: monkeypatch.setattr(_trials, "rdrop_repeat", lambda *items: items),
        {"rdrop_repeat"},
        r"computes the shape \(2, 3, 6\) instead of \(4, 3, 6\)",
    ),
    "nothing frozen": (
        lambda monkeypatch: monkeypatch.setattr(_trials, "freeze_delta", lambda network, mode: None),
        {"freeze_delta (BitFit)"},
        "trains 0.weight, 0.bias, 2.weight, 2.bias instead of 0.bias, 2.bias",
    ),
}


@pytest.mark.parametrize(("spoil", "layers", "failure"), WRONG.values(), ids=WRONG)
def test_a_wrong_layer_fails_and_its_neighbours_pass(monkeypatch, spoil, layers, failure):
    spoil(monkeypatch)
    records = _measure(layers | {"LoRADense", "rdrop_repeat"})
    failed = [record for record in records if not record.passed]
    assert {record.layer for record in failed} == layers
    for record in failed:
        assert re.search(failure, record.failure), record.failure


def test_a_doubled_scale_fails_in_exactly_its_rows(monkeypatch):
    _double_the_scale(monkeypatch)
    records = [*_measure(), *_measure({"LoRADense", "rdrop_repeat"}, "graph", DTYPES["CPU"])]
    failed = [(record.layer, record.dtype, record.mode) for record in records if not record.passed]
    children = [(name, "float32", "PyNative") for name in ("DoRADense", "PiSSADense")]
    in_graphs = [("LoRADense", dtype, "graph") for dtype in ("float32", "float16")]
    assert failed == [("LoRADense", "float32", "PyNative"), *children, *in_graphs]
    assert not describe_selftest("CPU", records)["passed"]


def test_the_report_is_json_even_where_a_number_is_not_finite(monkeypatch):
    _overflow(monkeypatch)
    records = _measure({"LoRADense"})
    (case,) = describe_selftest("CPU", records)["cases"]
    assert (case["forward_error"], case["passed"]) == (None, False)
    json.dumps(case, allow_nan=False)
