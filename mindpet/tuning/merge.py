"""Fold adapters into the base weights, take them out again bit for bit, and give the plain network back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, nn

from mindpet.tuning.attach import detach
from mindpet.tuning.base_weights import BaseWeight, find_in_folder
from mindpet.tuning.compiled import forget_compiled, refuse_captured, refuse_stale
from mindpet.tuning.merge_report import MergedCell, MergeReport, compare, passing_dtypes, tolerance_for
from mindpet.tuning.registry import METHODS
from mindpet.tuning.rounding import round_to
from mindpet.tuning.state import PeftState, Replacement, check_at_work, refuse_stacked, require_state
from mindpet.tuning.values import write_values
from mindpet.utils.exceptions import InputError

__all__ = ["Merged", "Switched", "merge", "unload", "unmerge"]

_Change = tuple[Parameter, np.ndarray, np.ndarray]  # a parameter, what it holds, and what it is to hold


@dataclass(frozen=True)
class Switched:
    """A merged cell and what its `scaling` was."""

    cell: Any
    scaling: np.ndarray


@dataclass(frozen=True)
class Merged:
    """What undoing a merge needs.

    Attributes:
        weights: The parameters that were changed, with their base values or the hashes of these.
        switched: The cells whose branches were switched off.
        trained: The parameters that could be trained.
    """

    weights: tuple[BaseWeight, ...]
    switched: tuple[Switched, ...]
    trained: tuple[Parameter, ...]


@dataclass(frozen=True)
class _Planned:
    """One layer's merge, computed but not carried out."""

    replacement: Replacement
    changes: tuple[_Change, ...]
    report: MergedCell


def merge(network: nn.Cell, tolerance: float | None = None, keep_base: bool = True) -> MergeReport:
    """Write base plus the active adapter into the base weights and switch it off, so that it costs nothing more.

    weight := round(weight + change), with the sum in float32 on the host and one rounding to the weight's own dtype. A
    LoRA layer's change is lora_alpha / r * B A; IA3 multiplies weight and bias by its factors. A network that has been
    compiled or wrapped is compiled anew and gives the merged result at its next call. Everything is computed and
    checked first; where anything is refused, nothing has changed.

    Each layer is compared on a seeded probe: what base and adapter compute, in float64, and what the merged weights
    compute. The largest difference, divided by the layer's largest output, must not be above `tolerance`.

    What was trained of the network's own parameters (BitFit's biases, `modules_to_save`) is there already and stays.
    A merged network can be run, and not trained: until it is unmerged, its adapted layers raise ValueError under
    `set_train(True)`, and it has no trainable parameters, of which an optimizer could be made. An optimizer that was
    made before keeps its list: do not step it.

    Args:
        network: A network with an adapter attached.
        tolerance: The largest relative difference of a layer's output; None for 2^-20 in float32, 2^-9 in float16 and
            2^-6 in bfloat16, which is some four roundings.
        keep_base: Whether the base weights of the adapted layers are kept on the host, so that `unmerge` needs no
            file; the report says how large they are.

    Returns:
        For each layer the differences and how many weights rounding has left as they were.

    Raises:
        InputError: Nothing is attached, it is merged already, a layer was moved since, a method is not linear, a weight
            is used elsewhere too, an adapter holds NaN, or the difference is above the tolerance (the message says
            which dtype would pass).
        CompiledNetworkError: A function captured as bytecode lives that would not notice the change.
        TypeError: `tolerance` is no number or `keep_base` no bool.
    """
    _check_arguments(tolerance, keep_base)
    state = require_state(network)
    _refuse_unmergeable(state)
    _refuse_moved(state)
    refuse_captured()
    holders = _find_holders(network)
    planned = [_plan(replacement, holders) for replacement in state.replacements]
    _refuse_above(planned, tolerance)
    changes = [change for plan in planned for change in plan.changes]
    in_no_file = {id(state.parameters[name]) for name in state.marked}
    weights = tuple(
        BaseWeight.of(parameter, base, keep_base or id(parameter) in in_no_file) for parameter, base, _ in changes
    )
    switched = tuple(Switched(one.cell, one.cell.scaling.asnumpy().copy()) for one in state.replacements)
    switches = [(one.cell.scaling, np.zeros_like(one.scaling)) for one in switched]
    write_values([(parameter, new) for parameter, _, new in changes] + switches)
    for one in switched:
        one.cell.merged = True
    trained = tuple(network.trainable_params())
    _set_trainable(trained, False)
    state.merged = Merged(weights, switched, trained)
    forget_compiled()
    kept = sum(weight.values.nbytes for weight in weights if weight.values is not None)
    return MergeReport(tuple(plan.report for plan in planned), kept)


def unmerge(network: nn.Cell, base: str | Path | None = None) -> None:
    """Give the base weights their old values back, bit for bit, and switch the adapter on again.

    A network that has been compiled or wrapped is compiled anew and gives the unmerged result at its next call. Where
    something is refused, nothing has changed.

    Args:
        network: A merged network.
        base: A Hugging Face folder with the base weights, for a merge with keep_base=False. A tensor is recognised by
            its shape and the SHA-256 of its values in the weight's dtype, whatever its name; a dense layer's may be
            stored transposed.

    Raises:
        InputError: Nothing is attached or merged, a weight was not kept and no folder is given, or the folder does not
            hold it.
        CompiledNetworkError: A function captured as bytecode lives that would not notice the change.
    """
    state = require_state(network)
    if state.merged is None:
        raise InputError("the adapter is not merged, so there is nothing to take out; call mindpet.merge first")
    refuse_captured()
    merged: Merged = state.merged
    missing = [weight for weight in merged.weights if weight.values is None]
    if missing and base is None:
        raise InputError(
            f"the base values of {missing[0].parameter.name} and {len(missing) - 1} other weights were not kept "
            "(keep_base=False), so merging is final; give the model's folder as base=FOLDER, or load the base again"
        )
    found = find_in_folder(missing, base) if missing and base is not None else {}
    values = [found[id(weight)] if weight.values is None else weight.values for weight in merged.weights]
    parameters = [weight.parameter for weight in merged.weights]
    changes = list(zip(parameters, values, strict=True))
    write_values(changes + [(one.cell.scaling, one.scaling) for one in merged.switched])
    for one in merged.switched:
        one.cell.merged = False
    _set_trainable(merged.trained, True)
    state.merged = None
    forget_compiled()


def unload(network: nn.Cell) -> nn.Cell:
    """Take off what is attached and give the plain network back, with its own layers and Parameter objects.

    Without a merge before, it is the network from before attaching: the trained values of its own parameters (BitFit's
    biases, `modules_to_save`) are taken back too. After `merge` it keeps base plus adapter, and these values; that is
    final. What could be trained before attaching can be trained again.

    Args:
        network: A network with something attached.

    Returns:
        `network` itself.

    Raises:
        InputError: Nothing is attached, adapters are stacked, or an adapted layer was moved or replaced since.
        CompiledNetworkError: An optimizer, or a function captured as bytecode, lives that would not notice the change.
    """
    state = require_state(network)
    refuse_stacked(state)
    _refuse_moved(state)
    refuse_stale(network)
    if state.merged is None:
        _restore_marked(state)
    for replacement in state.replacements:
        replacement.original.set_train(replacement.cell.training)
    detach(network)
    return network


def _check_arguments(tolerance: Any, keep_base: Any) -> None:
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, int | float)):
        raise TypeError(f"tolerance is {tolerance!r}; give None or a number such as 1e-3")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance is {tolerance!r}; give a finite number from 0, or None for that of each dtype")
    if not isinstance(keep_base, bool):
        raise TypeError(f"keep_base is {keep_base!r}; give True or False")


def _refuse_moved(state: PeftState) -> None:
    """Refuse a network whose adapted layers hang elsewhere than after attaching."""
    for replacement in state.replacements:
        if not all(place.holds(replacement.cell) for place in replacement.places):
            raise InputError(
                f"the adapted layer {replacement.path} has been moved or replaced since it was attached; put it back,"
                " or change the network before attaching"
            )


def _refuse_unmergeable(state: PeftState) -> None:
    """Refuse a second merge, an adapter that is not at work, and methods that are no change of weights."""
    if state.merged is not None:
        raise InputError("the adapter is merged already; call mindpet.unmerge first")
    check_at_work(state)
    attached = [(one.method, one.path) for one in state.replacements] + [(one.method, one.path) for one in state.feeds]
    for method, path in attached:
        if not METHODS[method].linear:
            raise InputError(
                f"{method} at {path} cannot be merged, as it is no change of the base weights; "
                "keep it attached, or take it off with mindpet.unload"
            )


def _find_holders(network: nn.Cell) -> dict[int, list[tuple[nn.Cell, str]]]:
    """Return the cells, with their paths, that hold each parameter, by the parameter's id."""
    holders: dict[int, list[tuple[nn.Cell, str]]] = {}
    for path, cell in network.cells_and_names():
        for _, parameter in cell.parameters_and_names(expand=False):
            holders.setdefault(id(parameter), []).append((cell, path))
    return holders


def _plan(replacement: Replacement, holders: Mapping[int, list[tuple[nn.Cell, str]]]) -> _Planned:
    """Compute what merging a layer would write, and what rounding does to it."""
    cell, path = replacement.cell, replacement.path
    try:
        exact = cell.merged_values()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    changes = {}
    for attribute, wanted in exact.items():
        parameter = getattr(cell, attribute)
        others = [
            other for holder, other in holders[id(parameter)] if holder is not cell and not _follows(holder, cell)
        ]
        if others:
            raise InputError(
                f"{parameter.name} of {path} is used by {others[0] or 'the network'} too, whose output merging would "
                "change; keep the adapter attached, or give the two cells weights of their own"
            )
        if not np.isfinite(wanted).all():
            raise InputError(
                f"merging {path} would write NaN or infinite numbers into its {attribute}; the adapter or the base is "
                "damaged: load it again"
            )
        base = parameter.asnumpy().copy()
        changes[attribute] = (parameter, base, round_to(wanted, base.dtype))
    base_values = {attribute: base for attribute, (_, base, _) in changes.items()}
    rounded = {attribute: new for attribute, (_, _, new) in changes.items()}
    return _Planned(replacement, tuple(changes.values()), compare(replacement, base_values, rounded))


def _follows(holder: Any, cell: Any) -> bool:
    """Tell whether a head that is tied to an embedding computes with the rows that are trained there, merged or not."""
    rows = getattr(getattr(holder, "tied_rows", None), "mindpet_delta_tokens_rows", None)
    return rows is not None and rows is getattr(cell, "mindpet_delta_tokens_rows", None)


def _refuse_above(planned: list[_Planned], tolerance: float | None) -> None:
    """Refuse where a layer's difference is above its tolerance, naming the worst and the dtypes that would do."""
    failed = [plan for plan in planned if plan.report.relative > tolerance_for(plan.report.dtype, tolerance)]
    if not failed:
        return
    worst = max(failed, key=lambda plan: plan.report.relative).report
    passing = passing_dtypes([plan.replacement for plan in failed], tolerance)
    cast = f"cast the base to {' or '.join(passing)}, which would pass" if passing else "no dtype would pass"
    raise InputError(
        f"merging {worst.path} into {worst.dtype} would change its output by {worst.relative:.1e} of the largest one; "
        f"accepted is {tolerance_for(worst.dtype, tolerance):.1e} ({len(failed)} of {len(planned)} layers are above "
        f"it): {cast}; or give a larger tolerance, or keep the adapter attached"
    )


def _set_trainable(parameters: tuple[Parameter, ...], trainable: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = trainable


def _restore_marked(state: PeftState) -> None:
    write_values((state.parameters[name], old) for name, old in state.marked.items())
