"""MindPet on MindSpore, in PyNative mode unless a context was set before."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from mindspore import Tensor, nn

import mindpet
from mindpet.models.auto import is_causal_lm, load_causal_lm
from mindpet.models.bert import BertForSequenceClassification
from mindpet.tuning.exchange.report import UnverifiedAdapterWarning
from mindpet.utils.exceptions import InputError

REFUSALS = (InputError,)


def load_base(base: Path) -> nn.Cell:
    """Return the network in a folder."""
    return load_causal_lm(base) if is_causal_lm(base) else BertForSequenceClassification.from_pretrained(base)


def logits(base: Path, adapter: Path | None, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits of a base with an adapter, or with none."""
    net = load_base(base)
    if adapter is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnverifiedAdapterWarning)  # PEFT's folders have no probe to repeat
            mindpet.load_adapter(net, adapter)
    net.set_train(False)
    return net(*(Tensor(values) for values in inputs.values())).asnumpy()
