"""Shard strategies: a layer says as data which primitive each argument belongs to; here they are checked and applied."""

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import mindspore
from mindspore import Tensor, nn, ops

from mindpet.delta._activations import activation_strategies, is_log_softmax
from mindpet.utils.nearest import nearest_names

__all__ = ["shard_method", "within"]

_PARALLEL_MODES = ("semi_auto_parallel", "auto_parallel")

_DOCSTRING = """Set the strategies by which semi-automatic and automatic parallel mode split the primitives.

Each argument is a tuple with one tuple of ints for each input of its primitive, as for
`mindspore.ops.Primitive.shard`; None leaves the primitive to the planner's default, data parallelism. A strategy for a
primitive that the layer does not have (a bias without `has_bias`, an activation that is None) is ignored. Outside these
modes, PyNative included, the strategies are stored and change no result.

Args:
{arguments}

Returns:
    The layer itself.

Raises:
    TypeError: a strategy is no tuple of tuples, or a keyword is unknown (the message names the nearest one).
    ValueError: in semi-automatic or automatic parallel mode, the activation is LogSoftmax, or a cell that holds no
        primitive to shard, and a strategy for it is given.
"""


def within(path: str, targets: Mapping[str, str]) -> dict[str, str]:
    """Return `targets` as seen from a cell that holds their cell under the attribute `path`."""
    return {argument: f"{path}.{target}" for argument, target in targets.items()}


def shard_method(targets: Mapping[str, str]) -> Callable[..., Any]:
    """Make the `shard` method of a layer.

    Args:
        targets: from each keyword, in the documented order, to the attribute path of the primitive or activation that
            takes its strategy.
    """
    keywords = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in targets]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([itself, *keywords])

    def shard(self: nn.Cell, *args: Any, **kwargs: Any) -> nn.Cell:
        _refuse_unknown(type(self).__name__, kwargs, targets)
        strategies = signature.bind(self, *args, **kwargs).arguments
        given = {name: strategies[name] for name in targets if strategies.get(name) is not None}
        for name, strategy in given.items():
            _check_strategy(name, strategy)
        steps = [step for name, strategy in given.items() for step in _steps(self, name, targets[name], strategy)]
        for primitive, strategy in steps:
            primitive.shard(strategy)
        return self

    shard.__signature__ = signature  # type: ignore[attr-defined]
    lines = [
        f"    {argument} (tuple): the strategy of `{target}`. Default: None." for argument, target in targets.items()
    ]
    shard.__doc__ = _DOCSTRING.format(arguments="\n".join(lines))
    return shard


def _refuse_unknown(owner: str, kwargs: Mapping[str, Any], targets: Mapping[str, str]) -> None:
    for name in kwargs:
        if name not in targets:
            near = nearest_names(name, targets, count=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(targets)}."
            raise TypeError(f"{owner}.shard() has no argument {name!r}; {advice}")


def _check_strategy(name: str, strategy: Any) -> None:
    entries = strategy if isinstance(strategy, tuple) else ()
    if not entries or not all(isinstance(entry, (tuple, mindspore.Layout)) for entry in entries):
        raise TypeError(
            f"`{name}` is {strategy!r} ({type(strategy).__name__}); accepted is a tuple with one tuple of ints for each "
            "input of the primitive, or None. Write ((2, 1), (4, 1)), for example, and ((2, 4),) for a single input."
        )


def _steps(layer: nn.Cell, name: str, target: str, strategy: tuple) -> list[tuple[ops.Primitive, tuple]]:
    """Return the primitives that one strategy reaches, each with its own strategy; nothing where the layer has none."""
    owner, _, attribute = target.rpartition(".")
    part = getattr(attrgetter(owner)(layer) if owner else layer, attribute, None)
    if part is None:
        return []
    if mindspore.get_auto_parallel_context("parallel_mode") in _PARALLEL_MODES and is_log_softmax(part):
        raise ValueError(
            f"`{name}` is given for LogSoftmax, which semi-automatic and automatic parallel mode do not support here. "
            "Choose another activation, or leave the strategy out."
        )
    steps = activation_strategies(part, strategy)
    if not steps and mindspore.get_auto_parallel_context("parallel_mode") in _PARALLEL_MODES:
        raise ValueError(
            f"`{name}` is given for {type(part).__name__}, a cell without one primitive that could take it. "
            "Name the activation by a str such as 'gelu', hand in a Primitive, or leave the strategy out."
        )
    return steps
