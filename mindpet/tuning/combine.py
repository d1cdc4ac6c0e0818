"""A new adapter from several: the weighted sum of what they have learnt, plain, by TIES or by DARE."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from mindspore import nn

from mindpet.tuning.adapters import check_new_name, current_values, require_changeable
from mindpet.tuning.capacity import plan_adapter_for, slots_of
from mindpet.tuning.config import LoraConfig, PeftConfig
from mindpet.tuning.state import PeftState
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import DELTA_MARK, SCALE

__all__ = ["combine_adapters", "dare", "linear", "ties"]

_Arrays = Sequence[np.ndarray]

_FACTOR_A, _FACTOR_B = f"{DELTA_MARK}lora_a", f"{DELTA_MARK}lora_b"


def linear(tensors: _Arrays, weights: Sequence[float]) -> np.ndarray:
    """Return sum_i w_i T_i (task arithmetic, arXiv:2212.04089).

    Args:
        tensors: Arrays of one shape, one for each adapter.
        weights: One number for each.
    """
    weighted = [np.float32(weight) * tensor for weight, tensor in zip(weights, tensors, strict=True)]
    return np.sum(weighted, axis=0, dtype=np.float32)


def ties(tensors: _Arrays, weights: Sequence[float], density: float) -> np.ndarray:
    """Return the TIES merge of tensors: trim, elect signs, and average what agrees (arXiv:2306.01708).

    Trim: of each T_i only the floor(density * size) entries of largest magnitude stay, the others become 0. Elect: an
    entry's sign s is that of the sum of the trimmed entries over i, + where the sum is 0. Merge: the entry is the mean
    of w_i T_i over those i whose trimmed entry has the sign s; 0 where there is none. An entry of 0 has no sign. As in
    PEFT, the weights have no part in the election.

    Args:
        tensors: Arrays of one shape, one for each adapter.
        weights: One number for each.
        density: The part that stays, above 0 and at most 1.
    """
    trimmed = np.stack([_trim(tensor, density) for tensor in tensors])
    agrees = np.sign(trimmed) == np.where(trimmed.sum(0) >= 0, 1, -1)
    weighted = trimmed * np.reshape(np.asarray(weights, np.float32), (-1, *[1] * tensors[0].ndim))
    return (weighted * agrees).sum(0) / np.maximum(agrees.sum(0), 1).astype(np.float32)


def dare(tensors: _Arrays, weights: Sequence[float], density: float, masks: _Arrays) -> np.ndarray:
    """Return sum_i w_i m_i T_i / density: drop at random and rescale (arXiv:2311.03099).

    Args:
        tensors: Arrays of one shape, one for each adapter.
        weights: One number for each.
        density: The probability with which an entry stays, above 0 and at most 1.
        masks: For each adapter 1 where an entry stays and 0 where it is dropped.
    """
    kept = [mask * tensor / np.float32(density) for tensor, mask in zip(tensors, masks, strict=True)]
    return linear(kept, weights)


def combine_adapters(
    network: nn.Cell,
    names: Sequence[str],
    weights: Sequence[float],
    new_name: str,
    method: str = "linear",
    density: float | None = None,
    seed: int = 0,
) -> None:
    """Add an adapter that is made of others, which stay as they are; the active one stays active.

    Of LoRA, `A` and `B` are combined each by itself, as PEFT's `add_weighted_adapter` does: with the scale s_i of
    adapter i and c_i = sqrt(|w_i s_i|), `A` is the combination of the A_i with the weights sign(w_i s_i) c_i, and `B`
    that of the B_i with the weights c_i. So for one adapter B A is w s B_1 A_1; for several there are mixed terms too.
    The new adapter has the scale 1. An adapter without a layer has no part there.

    Of the network's own trained parameters (BitFit's biases, `modules_to_save`), the change since attaching is combined
    with the weights w_i, and added to the value from before; PEFT refuses these.

    Args:
        network: A network with LoRA, BitFit or both attached.
        names: The adapters, each once.
        weights: A number for each.
        new_name: The name of the new adapter.
        method: 'linear', 'ties' or 'dare'; see these functions of `mindpet.tuning.combine`.
        density: For 'ties' and 'dare' the part of the entries that stays, above 0 and at most 1.
        seed: What the random masks of 'dare' follow from.

    Raises:
        InputError: Nothing is attached, it is merged or stacked, a name is unknown or given twice, the new one is
            taken, ranks differ, a number is not finite, the adapters are of another method, of DoRA or PiSSA, or a
            density is missing, outside its range or given with 'linear'.
        TypeError: An argument is of a wrong type.
    """
    state = require_changeable(network)
    check_new_name(state, new_name)
    _check_lists(names, weights)
    combination = _combination(method, density, seed)
    found = [current_values(state, name) for name in names]
    _check_methods(state, names)
    factors, ranks = _combine_factors(state, found, weights, combination)
    own = {
        name: base + combination([values[name] - base for values in found], weights).astype(base.dtype)
        for name, base in state.marked.items()
    }
    adapter = plan_adapter_for(network, state, _configs(state, names, ranks))
    adapter.values |= own | factors
    state.adapters[new_name] = adapter


def _trim(tensor: np.ndarray, density: float) -> np.ndarray:
    flat = tensor.reshape(-1)
    largest = np.argsort(-np.abs(flat), kind="stable")[: int(density * flat.size)]
    kept = np.zeros_like(flat)
    kept[largest] = flat[largest]
    return kept.reshape(tensor.shape)


def _combination(method: Any, density: Any, seed: Any) -> Callable[[_Arrays, Sequence[float]], np.ndarray]:
    """Return the function that combines tensors by weights."""
    if method not in ("linear", "ties", "dare"):
        raise InputError(f"method is {method!r}; give 'linear', 'ties' or 'dare'")
    if method == "linear":
        if density is not None:
            raise InputError("density is given, which 'linear' does not use; leave it out, or give 'ties' or 'dare'")
        return linear
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise InputError(f"density is {density!r}; give {method} a number above 0 and at most 1")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; give a whole number from 0")
    if method == "ties":
        return partial(ties, density=density)
    generator = np.random.default_rng(seed)

    def drop(tensors: _Arrays, weights: Sequence[float]) -> np.ndarray:
        masks = [generator.random(tensor.shape) < density for tensor in tensors]
        return dare(tensors, weights, density, masks)

    return drop


def _check_lists(names: Any, weights: Any) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise TypeError(f"names is {names!r}; give a list of adapters' names")
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"weights is {weights!r}; give a list of numbers")
    if len(set(names)) != len(names) or len(names) != len(weights):
        raise InputError(
            f"there are {len(names)} names ({', '.join(names)}) and {len(weights)} weights; give each name"
            " once and a weight for it"
        )
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"a weight is {weight!r}; give finite numbers")


def _check_methods(state: PeftState, names: Sequence[str]) -> None:
    for name in names:
        for config in state.adapters[name].configs:
            plain = isinstance(config, LoraConfig) and not config.use_dora and config.init_lora_weights == "default"
            if not plain and config.method != "bitfit":
                variant = " with use_dora" if getattr(config, "use_dora", False) else ""
                variant = variant or (" that starts with pissa" if config.method == "lora" else "")
                raise InputError(
                    f"{name} is an adapter of {config.method}{variant}, which cannot be combined; give adapters of"
                    " plain LoRA or BitFit"
                )


def _combine_factors(
    state: PeftState,
    found: Sequence[Mapping[str, np.ndarray]],
    weights: Sequence[float],
    combination: Callable[..., np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the combined factors by name, and the rank of each layer by its path."""
    factors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    slots = slots_of(state)
    for path in [path for path, inner in slots if inner == _FACTOR_A]:
        a, b, scale = (slots[path, inner].name for inner in (_FACTOR_A, _FACTOR_B, SCALE))
        holders = [(values, weight) for values, weight in zip(found, weights, strict=True) if a in values]
        sizes = {len(values[a]) for values, _ in holders}
        if len(sizes) > 1:
            raise InputError(
                f"the adapters have the ranks {sorted(sizes)} at {path}; their factors can be combined only where the"
                " ranks are equal"
            )
        if not holders:
            continue
        products = [weight * float(values[scale]) for values, weight in holders]
        roots = [math.sqrt(abs(product)) for product in products]
        signed = [math.copysign(root, product) for root, product in zip(roots, products, strict=True)]
        ranks[path] = sizes.pop()
        factors[a] = combination([values[a] for values, _ in holders], signed)
        factors[b] = combination([values[b] for values, _ in holders], roots)
        factors[scale] = np.ones_like(holders[0][0][scale])
    return factors, ranks


def _configs(state: PeftState, names: Sequence[str], ranks: Mapping[str, int]) -> list[PeftConfig]:
    """Return the adapters' configurations, of each method the first, with the new one's layers, ranks and scale."""
    configs = {one.method: one for name in reversed(names) for one in state.adapters[name].configs}
    lora = configs.get("lora")
    if lora is not None:
        rank = max(ranks.values())
        others = {path: size for path, size in ranks.items() if size != rank}
        configs["lora"] = lora.model_copy(
            update={
                "r": rank,
                "lora_alpha": float(rank),
                "rank_pattern": others,
                "alpha_pattern": {path: float(size) for path, size in others.items()},
                "use_rslora": False,
                "target_modules": tuple(ranks),
            }
        )
    return list(configs.values())
