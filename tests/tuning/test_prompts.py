"""A prompt that starts as real tokens does what these tokens do."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

import mindpet
from mindpet.utils.exceptions import InputError
from tests.tuning.test_decoders import small

PROMPT = np.array([[3, 7, 1]], np.int32)
TEXT = np.array([[5, 2, 9, 11]], np.int32)


def _inputs(ids):
    return Tensor(ids), Tensor(np.ones_like(ids))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "glm"])
def test_the_network_goes_on_as_its_base_does_behind_the_tokens(kind):
    expected = small(kind)(*_inputs(np.concatenate([PROMPT, TEXT], 1))).asnumpy()[:, PROMPT.shape[1] :]
    network = mindpet.get_peft_model(small(kind), mindpet.PTuning2Config(num_virtual_tokens=3), max_tokens=5)
    random = network(*_inputs(TEXT)).asnumpy()
    mindpet.start_prompt(network, *_inputs(PROMPT))
    np.testing.assert_allclose(network(*_inputs(TEXT)).asnumpy(), expected, atol=1e-5)
    assert np.abs(random - expected).max() > 1e-2
    assert mindpet.active_adapter(network) == "default"


def test_the_mode_and_the_flags_are_as_before(mode):
    network = mindpet.get_peft_model(small("llama"), mindpet.PTuning2Config(num_virtual_tokens=3)).set_train()
    mindpet.start_prompt(network, *_inputs(PROMPT))
    assert network.training
    assert mindspore.get_context("mode") == (0 if mode == "graph" else 1)


@pytest.mark.parametrize(
    ("config", "ids", "reason"),
    [
        (mindpet.PTuning2Config(num_virtual_tokens=2), PROMPT, "1 examples of 3 tokens, and the prompt has 2"),
        (mindpet.PTuning2Config(num_virtual_tokens=3), np.tile(PROMPT, (2, 1)), "2 examples of 3 tokens"),
        (mindpet.PTuning2Config(num_virtual_tokens=3, prefix_projection=True), PROMPT, "prefix_projection=False"),
        (mindpet.PrefixConfig(num_virtual_tokens=3), PROMPT, "prefixtuning is attached"),
    ],
    ids=["other tokens", "two examples", "projection", "prefix tuning"],
)
def test_what_cannot_be_a_prompt_is_refused_and_changes_nothing(config, ids, reason):
    network = mindpet.get_peft_model(small("llama"), config)
    before = network(*_inputs(TEXT)).asnumpy()
    with pytest.raises(InputError, match=reason):
        mindpet.start_prompt(network, *_inputs(ids))
    np.testing.assert_array_equal(network(*_inputs(TEXT)).asnumpy(), before)
