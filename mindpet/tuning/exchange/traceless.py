"""Running cells so that nothing tells of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mindspore
import numpy as np
from mindspore import nn

__all__ = ["keep_random_state", "quiet"]


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Put MindSpore's and NumPy's random state back afterwards; MindSpore's initializers draw from NumPy's."""
    mindspore_state, numpy_state = mindspore.get_rng_state(), np.random.get_state()
    try:
        yield
    finally:
        mindspore.set_rng_state(mindspore_state)
        np.random.set_state(numpy_state)


@contextmanager
def quiet(network: nn.Cell) -> Iterator[None]:
    """Let cells run in PyNative mode and out of training; put back mode, training flags and random state afterwards."""
    mode = mindspore.get_context("mode")
    flags = [(cell, cell.training) for _, cell in network.cells_and_names()]
    with keep_random_state():
        try:
            for cell, _ in flags:
                cell.training = False
            mindspore.set_context(mode=mindspore.PYNATIVE_MODE)
            yield
        finally:
            mindspore.set_context(mode=mode)
            for cell, flag in flags:
                cell.training = flag
