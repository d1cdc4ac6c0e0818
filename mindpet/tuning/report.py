"""What is attached to a network and how much of it is trained, as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mindspore import nn

from mindpet.graph.freeze_utils import count_parameters
from mindpet.tuning.state import PeftState, require_state, state_of
from mindpet.tuning.targets import TargetMatch
from mindpet.utils.names import STATE_MARK

__all__ = ["TargetReport", "network_summary", "print_trainable_parameters", "target_report"]

_SHOWN = 3  # paths of an entry that a line names


@dataclass(frozen=True)
class TargetReport:
    """What each entry of the configurations has matched; `print` it, or read `matches`.

    Attributes:
        matches: One for each entry, in order.
    """

    matches: tuple[TargetMatch, ...]

    def __str__(self) -> str:
        rows = [(f"{match.method} {match.field}", repr(match.entry), _shorten(match.paths)) for match in self.matches]
        return "\n".join(_align(rows)) or "the configurations name no cells"


def target_report(network: nn.Cell) -> TargetReport:
    """Return what each entry of target_modules, modules_to_save and the patterns has matched.

    Raises:
        InputError: Nothing is attached.
    """
    return TargetReport(require_state(network).matches)


def print_trainable_parameters(network: nn.Cell) -> None:
    """Print how many numbers are trained, of how many, in one line; each shared parameter is counted once."""
    count = count_parameters(network)
    print(f"trainable: {count.trainable:,} of {count.total:,} ({count.ratio:.4%})")


def network_summary(network: nn.Cell) -> str:
    """Return a table of the network's children: cells, what is attached, numbers in all and trained.

    A child that is a list of cells is shown cell by cell. A shared parameter counts in each child.

    Args:
        network: Any network, with something attached or without.
    """
    state = state_of(network)
    rows = [("cell", "type", "attached", "parameters", "trainable")]
    for path, cell in _children(network):
        parameters = [item for item in cell.get_parameters() if STATE_MARK not in item.name]
        trained = sum(item.size for item in parameters if item.requires_grad)
        total = sum(item.size for item in parameters)
        rows.append((path, type(cell).__name__, _attached_below(state, path), f"{total:,}", f"{trained:,}"))
    count = count_parameters(network)
    rows.append(("in all", type(network).__name__, "", f"{count.total:,}", f"{count.trainable:,}"))
    return "\n".join(_align(rows))


def _children(network: nn.Cell) -> Iterable[tuple[str, nn.Cell]]:
    """Yield the network's cells down to the items of its lists, and the leaves beside them."""
    lists: list[str] = []
    for path, cell in network.cells_and_names():
        if isinstance(cell, nn.CellList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists.append(path)
    parts = [path.split(".") for path in lists]
    containers = {"", *(".".join(names[:end]) for names in parts for end in range(1, len(names) + 1))}
    for path, cell in network.cells_and_names():
        if path not in containers and path.rpartition(".")[0] in containers:
            yield path, cell


def _attached_below(state: PeftState | None, path: str) -> str:
    """Return the methods attached at `path` or below, each with its number of cells."""
    if state is None:
        return ""
    counts: dict[str, int] = {}
    attached = [(item.path, item.method) for item in state.replacements]
    attached += [(item.path, item.method) for item in state.feeds]
    for inner, method in attached:
        if inner == path or inner.startswith(f"{path}."):
            counts[method] = counts.get(method, 0) + 1
    return ", ".join(f"{method} x{count}" for method, count in counts.items())


def _shorten(paths: tuple[str, ...]) -> str:
    shown = ", ".join(paths[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{len(paths)}: {shown}{more}"


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return each row as a line whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
