"""Saving an adapter with everything that is needed to trust it later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspore import nn

from mindpet.graph.load import check_network
from mindpet.tuning.exchange.adapter import dump_methods, find_bad_values, list_some
from mindpet.tuning.exchange.card import Card, write_card
from mindpet.tuning.exchange.folder import check_target, write_folder
from mindpet.tuning.exchange.own import read_own
from mindpet.tuning.exchange.probe import CELL_TOLERANCE, NETWORK_TOLERANCE, record_probes
from mindpet.tuning.exchange.record import Record
from mindpet.tuning.exchange.subjects import base_parameters
from mindpet.tuning.exchange.values import HostTensor, digest, fingerprint, read
from mindpet.tuning.state import PeftState, check_at_work, require_state
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import STATE_MARK

__all__ = ["save_adapter"]


def save_adapter(
    net: nn.Cell,
    folder: str | os.PathLike[str],
    *,
    base: str | None = None,
    data: str | Mapping[str, Any] | None = None,
    metrics: str | Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the active adapter of a network into a folder: configuration, tensors with their golden probe, model card.

    The folder appears whole or not at all. It holds the adapter's parameters and the network's own ones that were
    trained with it (`modules_to_save`, BitFit's biases), nothing of the frozen base and no optimizer state. The cells
    are run in PyNative mode for the probe; mode, training flags and random state are as before afterwards.

    Args:
        net: The network that was given to `get_peft_model`.
        folder: Where to write. The folders above it are made.
        base: What the adapter was trained on, such as a model's name on the Hugging Face Hub; for the card and for
            people, not for checking.
        data: What it was trained with, a text or names with values; for the card.
        metrics: What it reached, likewise.
        overwrite: Whether an adapter that stands there is replaced, once the new one is complete.

    Raises:
        TypeError: `net` is no Cell.
        InputError: Nothing is attached, it is merged, a value is NaN or infinite, a cell cannot be run on this
            device, or the folder cannot be written. Nothing was written then.
    """
    check_network(net)
    target = Path(folder)
    check_target(target, overwrite)
    state = require_state(net)
    if state.merged is not None:
        raise InputError("the adapter is merged into the base weights; call mindpet.unmerge before saving it")
    check_at_work(state)
    tensors = read_own(net)
    if bad := find_bad_values(tensors):
        raise InputError(f"the adapter cannot be saved: {list_some(bad)}; train again with a lower learning rate")
    record = _make_record(net, state, tensors)
    card = Card(
        methods=dump_methods(state.configs),
        trained=sum(tensor.values.size for tensor in tensors.values()),
        total=sum(parameter.size for name, parameter in state.parameters.items() if STATE_MARK not in name),
        base=base,
        data=data,
        metrics=metrics,
    )
    write_folder(target, tensors, record, base, write_card(card), overwrite)


def _make_record(net: nn.Cell, state: PeftState, tensors: Mapping[str, HostTensor]) -> Record:
    cells, network = record_probes(net, state)
    return Record(
        version=1,
        methods=dump_methods(state.configs),
        base={name: fingerprint(read(parameter)) for name, parameter in base_parameters(net, state).items()},
        tensors={name: digest(tensor) for name, tensor in tensors.items()},
        cells=cells,
        network=network,
        cell_tolerance=CELL_TOLERANCE,
        network_tolerance=NETWORK_TOLERANCE,
    )
