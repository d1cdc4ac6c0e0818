"""Plans that mark parameters of the network itself."""

from __future__ import annotations

from typing import Any

from mindpet.tuning.config import BitFitConfig
from mindpet.tuning.layers import Network
from mindpet.tuning.plans.plan import Plan, find_biases, start_plan
from mindpet.tuning.targets import match_targets
from mindpet.utils.exceptions import InputError

__all__ = ["plan_bitfit"]


def plan_bitfit(network: Network, config: BitFitConfig, compute_dtype: Any) -> Plan:
    """Plan BitFit: the biases of the network, or of the targets, are trained."""
    plan = start_plan(network, config)
    if config.target_modules is None:
        plan.trained += find_biases(network, None)
        if not plan.trained:
            raise InputError("the network has no parameter whose name ends in bias; choose another method")
        return plan
    owners = [path for path in network.cells if find_biases(network, [path])]
    for match in match_targets("bitfit", "target_modules", config.target_modules, owners, "cell with a bias"):
        plan.matches.append(match)
        plan.trained += find_biases(network, match.paths)
    return plan
