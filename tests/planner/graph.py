"""Reads from the graph that the planner leaves what one device keeps and how each primitive is split."""

import re
from dataclasses import dataclass, field

DEVICES = 8

COLLECTIVES = ("AllGather", "AllReduce", "AlltoAll", "AllToAll", "Broadcast", "NeighborExchange", "ReduceScatter")

_PARAMETER = re.compile(r"^%para\d+_\S+: <Ref\[Tensor\[\w+\]\], \((.*?)\), ref_key=(\S+), is_parameter>")
_NODE = re.compile(r"^  %\d+\(\S+\) = (?:PrimFunc_)?(\w+)\(.* \{instance name: (\S+)\}")
_STRATEGY = re.compile(r".* \{in_strategy: \((.*)\)\}$")
_GROUP = re.compile(r'group_ranks: "([\d-]+|WORLD_GROUP)"')
_SCOPE = re.compile(r"^ +# Scope: \(Default/?(.*)\)$")


@dataclass
class Plan:
    """What the planner decided for one device of a network.

    `slices` has the shape that this device keeps of each parameter, `strategies` the split of the inputs of each
    primitive by its path in the network, `batch` the split of the network's input, `collectives` what the devices
    exchange, with the size of the group.
    """

    slices: dict = field(default_factory=dict)
    strategies: dict = field(default_factory=dict)
    batch: tuple = ()
    collectives: list = field(default_factory=list)


def read_plan(text):
    """Return the Plan in the text of a `step_parallel_end` graph."""
    plan, node = Plan(), None
    for line in text.splitlines():
        if found := _PARAMETER.match(line):
            plan.slices[found[2]] = _numbers(found[1])
        elif found := _NODE.match(line):
            node = (*found.groups(), line)
        elif (found := _SCOPE.match(line)) and node:
            _add_node(plan, *node, found[1])
            node = None
    return plan


def _add_node(plan, primitive, name, line, scope):
    if primitive in COLLECTIVES:
        ranks = _GROUP.search(line)[1]
        plan.collectives.append((primitive, DEVICES if ranks == "WORLD_GROUP" else ranks.count("-") + 1))
    elif found := _STRATEGY.match(line):
        strategy = tuple(map(_numbers, re.findall(r"\((.*?)\)", found[1])))
        if primitive == "_VirtualDataset":
            plan.batch = strategy
            return
        cells = [step.partition("-")[0] for step in scope.split("/") if step]
        if name.startswith("redistribution_op_"):  # the planner's own name for what it made in a primitive's place
            name = primitive.lower()
        plan.strategies[".".join([*cells, name])] = strategy


def _numbers(text):
    return tuple(map(int, re.findall(r"\d+", text)))
