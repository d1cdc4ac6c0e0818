"""Shard strategies: a layer says as data which primitive takes which argument; here they are checked and applied."""

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import mindspore
from mindspore import nn, ops

from mindpet.delta._activations import activation_strategies, is_log_softmax, make_twin, normalises
from mindpet.utils.nearest import nearest_names

__all__ = ["Targets", "shard_methods", "within"]

# From each keyword of `shard`, in the documented order, to the attribute path of the primitive or activation that takes
# its strategy, and to the axes of its inputs, written as in einsum: n rows, i input channels, o output channels; any
# other letter is an axis that is never split, and nothing after a comma is a scalar.
Targets = Mapping[str, tuple[str, str]]

_PARALLEL_MODES = ("semi_auto_parallel", "auto_parallel")

_SHARD_DOCSTRING = """Set the strategies by which semi-automatic and automatic parallel mode split the primitives.

Each argument is a tuple with one tuple of ints for each input of its primitive, as for
`mindspore.ops.Primitive.shard`; None leaves the primitive to the planner's default, data parallelism. A strategy for a
primitive that the layer does not have (a bias without `has_bias`, an activation that is None) is ignored. Outside these
modes, PyNative included, the strategies are stored and change no result. An activation has one input: ((2, 4),) fits
it, and ((2, 4), (2, 4)) is refused by the planner. An activation that is a cell of MindSpore without a primitive
(GELU, SiLU, LeakyReLU and the like) gives way to one that computes the same and has them.

Args:
{arguments}

Returns:
    The layer itself.

Raises:
    TypeError: a strategy is no tuple of tuples, or a keyword is unknown (the message names the nearest one).
    ValueError: in semi-automatic or automatic parallel mode, the activation is LogSoftmax, or a cell that holds no
        primitive to shard, and a strategy for it is given.
"""


def within(path: str, targets: Targets) -> dict[str, tuple[str, str]]:
    """Return `targets` as seen from a cell that holds their cell under the attribute `path`."""
    return {argument: (f"{path}.{target}", axes) for argument, (target, axes) in targets.items()}


def shard_methods(targets: Targets) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make the methods `shard` and `shard_like` of a layer whose primitives `targets` describes."""
    keywords = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in targets]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([itself, *keywords])

    def shard(self: nn.Cell, *args: Any, **kwargs: Any) -> nn.Cell:
        _refuse_unknown(type(self).__name__, kwargs, targets)
        given = signature.bind(self, *args, **kwargs).arguments
        return _apply(self, targets, {name: value for name, value in given.items() if name != "self"})

    def shard_like(self: nn.Cell, base: nn.Cell) -> nn.Cell:  # noqa: D417, `self` is no argument
        """Give every primitive the strategy that follows from how the product of a dense layer is split.

        Column-parallel (output channels split) and row-parallel (input channels split) layers, and both at once, are
        served. Without a strategy on `base.matmul`, nothing is set; an activation without a primitive to shard is left
        to the planner.

        Args:
            base: the dense layer that this one replaces or follows; its `matmul` may have transpose_b=False.

        Returns:
            The layer itself.

        Raises:
            ValueError: the strategy of `base.matmul` is a Layout; and what `shard` raises.
        """
        split = _split_of(base.matmul)
        return _apply(self, targets, {name: _derive(self, *targets[name], split) for name in targets} if split else {})

    shard.__signature__ = signature  # type: ignore[attr-defined]
    lines = [f"    {name} (tuple): the strategy of `{target}`. Default: None." for name, (target, _) in targets.items()]
    shard.__doc__ = _SHARD_DOCSTRING.format(arguments="\n".join(lines))
    return shard, shard_like


def _refuse_unknown(owner: str, kwargs: Mapping[str, Any], targets: Targets) -> None:
    for name in kwargs:
        if name not in targets:
            near = nearest_names(name, targets, count=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(targets)}."
            raise TypeError(f"{owner}.shard() has no argument {name!r}; {advice}")


def _apply(layer: nn.Cell, targets: Targets, strategies: Mapping[str, Any]) -> nn.Cell:
    """Check all strategies, then hand each to its primitives."""
    given = {name: strategy for name, strategy in strategies.items() if strategy is not None}
    for name, strategy in given.items():
        _check_strategy(name, strategy)
    steps = [step for name, strategy in given.items() for step in _steps(layer, name, targets[name][0], strategy)]
    for primitive, strategy in steps:
        primitive.shard(strategy)
    return layer


def _check_strategy(name: str, strategy: Any) -> None:
    entries = strategy if isinstance(strategy, tuple) else ()
    if not entries or not all(map(_is_layout_or_ints, entries)):
        raise TypeError(
            f"`{name}` is {strategy!r} ({type(strategy).__name__}); accepted is None or a tuple with one tuple of "
            "positive ints for each input. Write ((2, 1), (4, 1)), for example, and ((2, 4),) for a single input."
        )


def _is_layout_or_ints(entry: Any) -> bool:
    if isinstance(entry, tuple):
        return all(type(parts) is int and parts > 0 for parts in entry)
    return isinstance(entry, mindspore.Layout)


def _find(layer: nn.Cell, target: str) -> tuple[nn.Cell, str, Any]:
    """Return the cell that holds the attribute path's end, its name there, and the part; None where there is none."""
    path, _, attribute = target.rpartition(".")
    owner = attrgetter(path)(layer) if path else layer
    return owner, attribute, getattr(owner, attribute, None)


def _steps(layer: nn.Cell, name: str, target: str, strategy: tuple) -> list[tuple[ops.Primitive, tuple]]:
    """Return the primitives that one strategy reaches, each with its own strategy; nothing where the layer has none."""
    owner, attribute, part = _find(layer, target)
    if part is None:
        return []
    twin = make_twin(part)
    if twin is not None:
        setattr(owner, attribute, twin)
        part = twin
    parallel = mindspore.get_auto_parallel_context("parallel_mode") in _PARALLEL_MODES
    if parallel and is_log_softmax(part):
        raise ValueError(
            f"`{name}` is given for LogSoftmax, which semi-automatic and automatic parallel mode do not support here. "
            "Choose another activation, or leave the strategy out."
        )
    steps = activation_strategies(part, strategy)
    if parallel and not steps:
        raise ValueError(
            f"`{name}` is given for {type(part).__name__}, a cell without one primitive that could take it. "
            "Name the activation by a str such as 'gelu', hand in a Primitive, or leave the strategy out."
        )
    return steps


def _split_of(matmul: ops.Primitive) -> dict[str, int]:
    """Return into how many parts a sharded dense product splits its rows, input and output channels."""
    if "in_layout" in matmul.attrs:
        raise ValueError("The base layer is sharded by a Layout; accepted is a tuple of ints. Call shard() by hand.")
    strategy = matmul.attrs.get("in_strategy")
    if strategy is None:
        return {}
    (rows, inputs), weight = strategy
    return {"n": rows, "i": inputs, "o": weight[0] if matmul.transpose_b else weight[1]}


def _derive(layer: nn.Cell, target: str, axes: str, split: Mapping[str, int]) -> tuple[tuple[int, ...], ...] | None:
    """Return the strategy of one primitive from the axes of its inputs and the split of the base product.

    None stands for an activation that holds no primitive to shard: the planner finds its strategy.
    """
    part = _find(layer, target)[2]
    if isinstance(part, nn.Cell) and make_twin(part) is None and not activation_strategies(part, ((),)):
        return None
    if normalises(part):
        axes = axes[:-1] + "-"
    inputs = axes.split(",")
    if getattr(part, "name", "") == "MatMul" and not part.transpose_b and inputs[1] == "oi":
        inputs[1] = "io"
    return tuple(tuple(split.get(axis, 1) for axis in entry) for entry in inputs)
