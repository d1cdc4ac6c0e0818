"""The methods: one line each. Command line, tests and tables are made from here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindpet.tuning import config
from mindpet.tuning.layers import Network
from mindpet.tuning.plans import feed, mark, replace
from mindpet.tuning.plans.plan import Plan

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A tuning method.

    Attributes:
        name: Its freezing mode, its value on the command line, and the word in its parameters' names.
        config: Its configuration's class.
        linear: Whether it can be merged into the base weights.
        plan: `plan(network, config, compute_dtype)` says what it changes.
    """

    name: str
    config: type[config.PeftConfig]
    linear: bool
    plan: Callable[[Network, Any, Any], Plan]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("lora", config.LoraConfig, True, replace.plan_lora),
        Method("adapter", config.AdapterConfig, False, replace.plan_adapter),
        Method("low_rank_adapter", config.LowRankAdapterConfig, False, replace.plan_low_rank_adapter),
        Method("prefixtuning", config.PrefixConfig, False, feed.plan_prefix),
        Method("ptuning2", config.PTuning2Config, False, feed.plan_ptuning2),
        Method("ia3", config.IA3Config, True, replace.plan_ia3),
        Method("vera", config.VeraConfig, True, replace.plan_vera),
        Method("tokens", config.TrainableTokensConfig, True, replace.plan_tokens),
        Method("bitfit", config.BitFitConfig, False, mark.plan_bitfit),
    )
}
