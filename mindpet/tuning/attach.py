"""Attach methods to any network in one call: plan and check everything, then change, then freeze."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from mindspore import nn
from mindspore.common import dtype as mstype

from mindpet.delta.trainable_tokens import TiedTokens
from mindpet.tuning.capacity import enlarge, plan_adapter_for, write_adapter
from mindpet.tuning.compiled import forget_compiled, refuse_stale
from mindpet.tuning.config import PeftConfig
from mindpet.tuning.layers import Network
from mindpet.tuning.places import Place, find_places, reach
from mindpet.tuning.plans.plan import Plan
from mindpet.tuning.registry import METHODS
from mindpet.tuning.state import STATE_ATTRIBUTE, Feed, PeftState, Replacement, require_state, state_of
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK

__all__ = ["as_configs", "detach", "get_peft_model"]


def get_peft_model(
    network: nn.Cell,
    config: PeftConfig | Sequence[PeftConfig],
    compute_dtype: mstype.Type | None = None,
    *,
    max_rank: int | None = None,
    max_tokens: int | None = None,
    max_targets: str | Sequence[str] | None = None,
    adapter_name: str = "default",
) -> nn.Cell:
    """Attach one or several methods and freeze everything but their parameters and `modules_to_save`.

    The network is changed in place; its own parameters stay the same objects under the same names, so its old
    checkpoints still load. Nothing is changed when an error is raised. Call it before the optimizer is made. The
    network may have run already, and whatever holds it compiled is compiled anew.

    With LoRA, IA3, BitFit and adapters the output is the same to the last bit until they are trained, as long as
    `compute_dtype` is the dtype in which the network multiplied before; the other methods change it at once.

    What is attached has room for other adapters of the same methods (`mindpet.add_adapter`): of any rank, number of
    tokens and choice of layers up to those of `config`, or up to what is said here. Room that an adapter does not use
    holds zeros, which are not trained and not saved.

    Args:
        network: Any network. Layers that are replaced may be nn.Dense, mint.nn.Linear and what says that it computes
            as they do (`mindpet.tuning.layers.is_dense`), for LoRA nn.Embedding and nn.Conv2d too. Prefixes need
            attentions that take them (`mindpet.tuning.prefixes`).
        config: What to attach: one configuration, or a list where methods are combined.
        compute_dtype: The dtype of the adapted layers' products; by default the one that each layer names, else that of
            its weight.
        max_rank: The largest rank for which there is room; with adapters the bottleneck, with low-rank adapters the
            size of the thin products.
        max_tokens: The largest number of tokens for which there is room: virtual ones, or trained ones of an
            embedding.
        max_targets: All layers for which there is room, written like `target_modules`; where several methods are
            attached, for each that has `target_modules`.
        adapter_name: The name of the adapter that is attached and active.

    Returns:
        `network` itself.

    Raises:
        InputError: An entry matches nothing, two methods want one layer, something is attached already, or a layer
            cannot be adapted.
        CompiledNetworkError: An optimizer, or a function captured as bytecode, lives that would not notice the change.
        TypeError: `network` is no Cell, `config` no configuration, or another argument of a wrong type.
    """
    configs = as_configs(network, config)
    _check_room(max_rank, max_tokens, adapter_name)
    _check_fresh(network)
    refuse_stale(network)
    view = Network(network)
    plans = [METHODS[one.method].plan(view, one, compute_dtype) for one in configs]
    roomy = [enlarge(one, max_rank, max_tokens, max_targets) for one in configs]
    larger = [
        plan if one == plan.config else METHODS[one.method].plan(view, one, compute_dtype)
        for one, plan in zip(roomy, plans, strict=True)
    ]
    _check_conflicts(view, larger)
    _check_reachable(network, view, larger)
    _carry_out(network, view, plans, larger, adapter_name)
    return network


def detach(network: nn.Cell) -> None:
    """Put the plain layers back with their Parameters, values as they are, and restore what was trainable.

    Args:
        network: A network with something attached; the caller has checked whatever must be checked.

    Raises:
        InputError: Nothing is attached.
    """
    state = require_state(network)
    for replacement in state.replacements:
        for place in replacement.places:
            place.put(replacement.original)
    for feed in state.feeds:
        _empty(feed.attention, "prefix")
    for place in state.aids:
        _empty(place.parent, place.name)
    for name in state.children:
        _take_away(network, name)
    for name, trainable in state.was_trainable.items():
        state.parameters[name].requires_grad = trainable
    delattr(network, STATE_ATTRIBUTE)
    forget_compiled()


def as_configs(network: nn.Cell, config: PeftConfig | Sequence[PeftConfig]) -> tuple[PeftConfig, ...]:
    """Return one configuration or several as a tuple.

    Raises:
        InputError: There is none, or two of one method.
        TypeError: `network` is no Cell or `config` no configuration.
    """
    if not isinstance(network, nn.Cell):
        raise TypeError(f"the network is a {type(network).__name__}; give a mindspore.nn.Cell")
    configs = (config,) if isinstance(config, PeftConfig) else tuple(config)
    for one in configs:
        if not isinstance(one, PeftConfig):
            raise TypeError(f"config holds a {type(one).__name__}; give configurations such as mindpet.LoraConfig()")
    if not configs:
        raise InputError("config is an empty list; give at least one configuration")
    twice = [name for name, count in Counter(one.method for one in configs).items() if count > 1]
    if twice:
        raise InputError(f"config names {', '.join(twice)} twice; give each method one configuration")
    return tuple(one.model_copy(deep=True) for one in configs)  # their dicts could be changed from outside


def _check_room(max_rank: object, max_tokens: object, adapter_name: object) -> None:
    for name, value in (("max_rank", max_rank), ("max_tokens", max_tokens)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is {value!r}; give an int above 0, or None")
        if value is not None and value <= 0:
            raise InputError(f"{name} is {value}; give an int above 0, or None")
    if not isinstance(adapter_name, str) or not adapter_name:
        raise TypeError(f"adapter_name is {adapter_name!r}; give a text that is not empty")


def _check_fresh(network: nn.Cell) -> None:
    """Refuse a network to which something is attached, and one whose parameters cannot be told apart by name."""
    state = state_of(network)
    if state is not None:
        methods = ", ".join(one.method for one in state.configs)
        raise InputError(
            f"the network has {methods} attached already; give all methods as one list, or call mindpet.unload first"
        )
    names = Counter(parameter.name for parameter in network.get_parameters())
    by_hand = next((name for name in names if DELTA_MARK in name), None)
    if by_hand:
        raise InputError(
            f"the network has the delta parameter {by_hand} already; attach to a network without delta layers, or"
            " train this one as it is, with mindpet.freeze_delta"
        )
    repeated = next((name for name, count in names.items() if count > 1), None)
    if repeated:
        raise InputError(
            f"several parameters of the network have the name {repeated!r}; give each a name of its own, for example"
            " with update_parameters_name"
        )


def _check_conflicts(view: Network, plans: Sequence[Plan]) -> None:
    """Refuse two methods on one layer, also by a weight that it shares, and a method on a layer trained whole."""
    owners: dict[str, str] = {}
    for plan in plans:
        for path in (*plan.cells, *plan.feeds):
            other = owners.setdefault(path, plan.config.method)
            if other != plan.config.method:
                raise InputError(
                    f"{path} is wanted by {other} and by {plan.config.method}; give each its own target_modules"
                )
    for plan in plans:
        for parent in (place.parent for place, _ in plan.aids):
            shared = next((path for path in owners if view.cells[path] is parent), None)
            if shared:
                raise InputError(
                    f"{shared} is wanted by {owners[shared]}, and {plan.config.method} changes it too, as its weight is"
                    " that of an embedding; leave it out of target_modules"
                )
    for plan in plans:
        for saved in (path for match in plan.matches if match.field == "modules_to_save" for path in match.paths):
            if any(
                isinstance(aid, TiedTokens) and place.parent is view.cells[saved]
                for one in plans
                for place, aid in one.aids
            ):
                raise InputError(
                    f"{saved} is trained whole by modules_to_save, and the tokens of its weight, which is that of an"
                    " embedding, are trained too; take it out of modules_to_save"
                )
            inside = next((path for path in owners if path == saved or path.startswith(f"{saved}.")), None)
            if inside:
                raise InputError(
                    f"{inside} is wanted by {owners[inside]} and lies in {saved}, which modules_to_save trains whole;"
                    " take it out of one of the two"
                )


def _check_reachable(network: nn.Cell, view: Network, plans: Sequence[Plan]) -> None:
    """Refuse layers that a cell may call by a plain attribute, such as a list, where an exchange would not be seen."""
    wanted = {id(view.cells[path]): path for plan in plans for path in plan.cells}
    framework = vars(nn.Cell()).keys()  # where every cell keeps its children
    for owner in (cell for _, cell in network.cells_and_names() if not isinstance(cell, nn.SequentialCell)):
        for name, value in vars(owner).items():
            if name in framework or isinstance(value, nn.Cell):
                continue
            path = next((wanted[id(item)] for item in reach(value) if id(item) in wanted), None)
            if path:
                raise InputError(
                    f"{path} also stands in the plain {type(value).__name__} {name} of {type(owner).__name__}, where it"
                    " cannot be replaced; call the cell itself, make that an nn.CellList, or leave the layer out"
                )


def _carry_out(network: nn.Cell, view: Network, own: Sequence[Plan], plans: Sequence[Plan], name: str) -> None:
    """Make all changes, or none if one fails.

    Args:
        network: The network.
        view: Its cells.
        own: What the first adapter needs.
        plans: The same with room for others.
        name: The first adapter's name.
    """
    before = {parameter.name: parameter for parameter in network.get_parameters()}
    state = PeftState(
        configs=tuple(plan.config for plan in own),
        was_trainable={name: parameter.requires_grad for name, parameter in before.items()},
        matches=tuple(match for plan in own for match in plan.matches),
        sizes={plan.config.method: plan.config.size for plan in plans},
        active=name,
    )
    marked = {name for plan in own for name in plan.trained}
    state.marked = {name: before[name].asnumpy().copy() for name in before if name in marked}
    undo: list[Callable[[], object]] = []
    try:
        _swap(network, view, plans, state, undo)
        _feed(network, view, plans, state, undo)
        for parameter in network.get_parameters():
            undo.append(partial(setattr, parameter, "requires_grad", parameter.requires_grad))
            if parameter.name in before:  # what a new cell holds trains as the cell has it
                parameter.requires_grad = parameter.name in marked
        undo.append(partial(_take_away, network, STATE_ATTRIBUTE))
        state.parameters = {parameter.name: parameter for parameter in network.get_parameters()}
        state.adapters[name] = plan_adapter_for(network, state, state.configs, own)
        write_adapter(state, state.adapters[name].values)
        setattr(network, STATE_ATTRIBUTE, state)
        forget_compiled()
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _swap(
    network: nn.Cell, view: Network, plans: Sequence[Plan], state: PeftState, undo: list[Callable[[], object]]
) -> None:
    """Hang each new cell in every place of the layer that it replaces."""
    methods = {path: plan.config.method for plan in plans for path in plan.cells}
    twins = {path: plan.cells[path] for plan in plans for path in plan.cells}
    paths = {id(view.cells[path]): path for path in twins}
    places: dict[str, list[Place]] = {path: [] for path in twins}
    originals = [view.cells[path] for path in twins]
    while found := find_places(network, originals):
        for place, original in found:
            path = paths[id(original)]
            undo.append(partial(place.put, original))
            place.put(twins[path])
            places[path].append(place)
    state.replacements = [
        Replacement(path, methods[path], tuple(places[path]), view.cells[path], twins[path])
        for path in view.cells
        if path in twins
    ]


def _feed(
    network: nn.Cell, view: Network, plans: Sequence[Plan], state: PeftState, undo: list[Callable[[], object]]
) -> None:
    """Hand each prefix cell to its attention, and hang up what they share and need."""
    for plan in plans:
        for name, cell in plan.children.items():
            undo.append(partial(_take_away, network, name))
            Place(network, name).put(cell)
            state.children.append(name)
        for path, cell in plan.feeds.items():
            attention = view.cells[path]
            undo.append(partial(_empty, attention, "prefix"))
            Place(attention, "prefix").put(cell)
            state.feeds.append(Feed(path, plan.config.method, attention, cell))
        for place, cell in plan.aids:
            undo.append(partial(_empty, place.parent, place.name))
            place.put(cell)
            state.aids.append(place)


def _take_away(cell: nn.Cell, name: str) -> None:
    if hasattr(cell, name):
        delattr(cell, name)


def _empty(cell: nn.Cell, name: str) -> None:
    _take_away(cell, name)
    setattr(cell, name, None)
