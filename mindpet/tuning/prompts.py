"""A prompt that starts from real tokens: as the keys and values that the base itself has for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from mindspore import Tensor, nn

from mindpet.tuning.adapters import disable_adapter, enable_adapter, require_changeable
from mindpet.tuning.config import PTuning2Config
from mindpet.tuning.exchange.own import read_own, write_own
from mindpet.tuning.exchange.traceless import quiet
from mindpet.tuning.state import PeftState, check_at_work
from mindpet.utils.exceptions import InputError

__all__ = ["start_prompt"]

_TABLE = "mindpet_delta_ptuning2_embedding.embedding_table"


def start_prompt(network: nn.Cell, *inputs: Tensor) -> None:
    """Let the prompt of P-Tuning v2 start as the keys and values that the base has for real tokens.

    A prompt of random numbers disturbs a pretrained network, and much of the training goes into that; one of real
    words, best of the task's own texts, does not (arXiv:2101.00190, section 7.4). A decoder that numbers positions then
    gives for a text what its base gives for the text behind these tokens, up to rounding.

    The network is run in PyNative mode; mode, training flags and random state are as before afterwards.

    Args:
        network: A network with P-Tuning v2 attached, without `prefix_projection`, whose values no formula reaches.
        inputs: What the network takes, of one example that has exactly as many tokens as the prompt; whether one
            of them is padding is not checked.

    Raises:
        TypeError: `network` is no Cell.
        InputError: Nothing is attached, it is merged, stacked or disabled, it is another method or has a projection, or
            the inputs are of several examples or of another number of tokens. The prompt is as it was then.
    """
    state = require_changeable(network)
    check_at_work(state)
    tokens = _require_table(state)
    keys, values = _record(network, state, inputs)
    for recorded in (*keys, *values):
        if recorded.shape[:2] != (1, tokens):
            raise InputError(
                f"the inputs are {recorded.shape[0]} examples of {recorded.shape[1]} tokens, and the prompt has"
                f" {tokens} tokens; give one example of {tokens}"
            )
    layers = [side[0] for pair in zip(keys, values, strict=True) for side in pair]
    own = read_own(network)
    (name,) = (name for name in own if name.endswith(_TABLE))
    own[name] = replace(own[name], values=np.concatenate(layers, axis=1).astype(own[name].values.dtype))
    write_own(network, own)


def _require_table(state: PeftState) -> int:
    """Return the number of the active prompt's tokens, if its keys and values are parameters themselves."""
    for config in state.configs:
        if isinstance(config, PTuning2Config):
            if config.prefix_projection:
                raise InputError(
                    "the prompt comes out of a projection, which cannot be made to give chosen values; attach "
                    "PTuning2Config with prefix_projection=False"
                )
            return config.num_virtual_tokens
    attached = ", ".join(config.method for config in state.configs)
    raise InputError(f"{attached} is attached, which has no prompt that can be given values; attach PTuning2Config")


def _record(
    network: nn.Cell, state: PeftState, inputs: tuple[Tensor, ...]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return each attention's keys and values (examples, tokens, width) as the base computes them."""
    keys: list[np.ndarray] = []
    values: list[np.ndarray] = []

    def listen(_: nn.Cell, handed: tuple[Tensor, ...]) -> None:
        keys.append(handed[0].asnumpy())
        values.append(handed[1].asnumpy())

    handles = [feed.cell.register_forward_pre_hook(listen) for feed in state.own_feeds]
    disable_adapter(network)
    try:
        with quiet(network):
            network(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        enable_adapter(network)
    return keys, values
