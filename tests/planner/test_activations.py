"""The activations by name, split over 8 devices by MindSpore's planner, after a base layer and in a bottleneck."""

import mindspore
import pytest

from mindpet.delta import AdapterDense
from tests.planner.cases import OVER_CHANNELS, SHARDED_ACTIVATIONS, split_of
from tests.planner.planner import Failure, Refusal

pytestmark = pytest.mark.slow

_PLACES = ("activation.", "mindpet_delta_adapter.mindpet_delta_adapter_block.mindpet_delta_adapter_non_linear.")


@pytest.mark.parametrize("name", SHARDED_ACTIVATIONS)
def test_every_primitive_of_an_activation_is_split(answers, name):
    plan, split = answers[f"activation {name}"], split_of(name)
    allowed = {split, (), (1,)}  # of a tensor, of a number, of a parameter of one element
    for place in _PLACES:
        strategies = [strategy for path, strategy in plan.strategies.items() if path.startswith(place)]
        assert strategies
        assert all(strategy[0] == split and set(strategy) <= allowed for strategy in strategies)


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_an_axis_that_an_activation_goes_over_is_not_split(answers, name):
    refusal = answers[f"activation {name}, channels cut"]
    assert isinstance(refusal, Refusal)
    assert "The strategy corresponding to axis dimension(4) is not 1" in refusal.text


@pytest.mark.parametrize("mode", ["semi_auto_parallel", "auto_parallel"])
def test_log_softmax_is_refused_before_the_planner_is_asked(answers, mode):
    failure = answers[f"activation logsoftmax, {mode}"]
    assert isinstance(failure, Failure)
    assert failure.error == "ValueError"
    assert "LogSoftmax, which semi-automatic and automatic parallel mode do not support" in failure.text


@pytest.mark.parametrize("mode", ["stand_alone", "data_parallel", "hybrid_parallel"])
def test_log_softmax_is_no_error_in_any_other_mode(mode):
    mindspore.set_auto_parallel_context(parallel_mode=mode)
    try:
        layer = AdapterDense(8, 8, activation="logsoftmax", non_linearity="logsoftmax")
        layer.shard(strategy_activation_org=((2, 1),), strategy_non_linearity=((2, 1),))
    finally:
        mindspore.reset_auto_parallel_context()
