"""Plans that feed attentions with prefix keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspore import nn

from mindpet.delta.prefix_layer import PrefixLayer
from mindpet.delta.ptuning2 import PrefixEncoder
from mindpet.tuning.config import PrefixConfig, PTuning2Config
from mindpet.tuning.layers import Network
from mindpet.tuning.places import Place
from mindpet.tuning.plans.plan import Plan, start_plan
from mindpet.tuning.prefixes import (
    ENCODER_NAME,
    EncoderPrefix,
    LayerPrefix,
    PositionShift,
    SharedPrefix,
    name_parameters,
    takes_prefix,
)
from mindpet.utils.exceptions import InputError

__all__ = ["plan_prefix", "plan_ptuning2"]


def plan_prefix(network: Network, config: PrefixConfig, compute_dtype: Any) -> Plan:
    """Plan prefix tuning: each attention is fed by a layer of its own."""
    plan = start_plan(network, config)
    for path, attention in _attentions(network, "prefix tuning").items():
        width = attention.num_heads * attention.head_dim
        layer = PrefixLayer(
            config.num_virtual_tokens,
            1,
            attention.num_heads,
            width,
            config.embed_dim or width,
            config.encoder_hidden_size,
            config.dropout_rate,
        )
        _feed(plan, path, attention, LayerPrefix(layer))
        name_parameters(plan.feeds[path], f"{path}.prefix")
    _shift_positions(plan, network)
    return plan


def plan_ptuning2(network: Network, config: PTuning2Config, compute_dtype: Any) -> Plan:
    """Plan P-Tuning v2: all attentions are fed by one encoder, which hangs on the network."""
    plan = start_plan(network, config)
    attentions = _attentions(network, "P-Tuning v2")
    if isinstance(network.root, nn.CellList | nn.SequentialCell | nn.CellDict):
        raise InputError(
            f"P-Tuning v2 hangs an encoder on the network, and in a {type(network.root).__name__} it would stand among"
            " the layers; put the network into a cell of its own class"
        )
    shapes = {(attention.num_heads, attention.head_dim) for attention in attentions.values()}
    if len(shapes) > 1:
        raise InputError(
            f"P-Tuning v2 needs attentions of one shape, and the network has {sorted(shapes)}; choose LoRA"
        )
    ((num_heads, head_dim),) = shapes
    encoder = PrefixEncoder(
        config.num_virtual_tokens,
        len(attentions),
        num_heads,
        head_dim,
        config.prefix_projection,
        config.encoder_hidden_size,
        config.dropout_prob,
    )
    name_parameters(encoder, ENCODER_NAME)
    encoder.set_train(network.root.training)
    plan.children[ENCODER_NAME] = encoder
    for number, (path, attention) in enumerate(attentions.items()):
        prefix = EncoderPrefix(encoder, number)
        prefix.mindpet_state_visible.name = f"{path}.prefix.{prefix.mindpet_state_visible.name}"
        _feed(plan, path, attention, prefix)
    _shift_positions(plan, network)
    _put_where_asked(plan, network, "shared_prefix", lambda: SharedPrefix(encoder))
    return plan


def _attentions(network: Network, method: str) -> dict[str, nn.Cell]:
    """Return the attentions that take a prefix, by path."""
    attentions = {path: cell for path, cell in network.cells.items() if takes_prefix(cell)}
    if not attentions:
        raise InputError(
            f"no attention of {type(network.root).__name__} takes a prefix, which {method} needs; choose another"
            " method, or let its attentions follow the protocol of mindpet.tuning.prefixes"
        )
    return attentions


def _feed(plan: Plan, path: str, attention: nn.Cell, cell: nn.Cell) -> None:
    cell.set_train(attention.training)
    plan.feeds[path] = cell


def _shift_positions(plan: Plan, network: Network) -> None:
    """Let the positions of the text follow those of the prefix, of which every attention sees as many tokens."""
    fed = next(iter(plan.feeds.values()))
    _put_where_asked(plan, network, "position_shift", lambda: PositionShift(fed.mindpet_state_visible))


def _put_where_asked(plan: Plan, network: Network, name: str, make: Callable[[], nn.Cell]) -> None:
    """Plan a new cell for each cell of the network that has an attribute of this name."""
    cells = (network.root, *network.cells.values())
    plan.aids += [(Place(cell, name), make()) for cell in cells if hasattr(cell, name)]
