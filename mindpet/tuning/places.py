"""Where cells hang in a network, and exchanging them so that parameters keep their names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType

from mindspore import Tensor, nn, ops

from mindpet.utils.exceptions import InputError

__all__ = ["Place", "find_places", "reach"]


@dataclass(frozen=True)
class Place:
    """Where a cell hangs: the cell above it and its name there.

    Attributes:
        parent: The cell above.
        name: The child's name there, in a list its index.
    """

    parent: nn.Cell
    name: str

    def holds(self, cell: nn.Cell) -> bool:
        """Tell whether `cell` hangs here."""
        if isinstance(self.parent, nn.CellList | nn.SequentialCell):
            index = self._index()
            return index < len(self.parent) and self.parent[index] is cell
        if isinstance(self.parent, nn.CellDict):
            return self.name in self.parent.keys() and self.parent[self.name] is cell  # noqa: SIM118, no __contains__
        return getattr(self.parent, self.name, None) is cell

    def put(self, cell: nn.Cell) -> None:
        """Hang `cell` here. MindSpore renames the parameters of a cell that is assigned, so names are put back."""
        names = [(parameter, parameter.name) for parameter in cell.get_parameters()]
        if isinstance(self.parent, nn.CellList | nn.SequentialCell):
            self.parent[self._index()] = cell
        elif isinstance(self.parent, nn.CellDict):
            self.parent[self.name] = cell
        else:
            setattr(self.parent, self.name, cell)
        for parameter, name in names:
            parameter.name = name

    def _index(self) -> int:
        """Return the child's place in a list; the children of an nn.SequentialCell may have names."""
        if self.name.isdigit():
            return int(self.name)
        names = list(self.parent.name_cells())
        if len(names) != len(self.parent):
            raise InputError(
                f"{self.name} hangs twice in one nn.SequentialCell; give its cells as a list, without names"
            )
        return names.index(self.name)


def find_places(network: nn.Cell, cells: Collection[nn.Cell]) -> list[tuple[Place, nn.Cell]]:
    """List the places where one of `cells` hangs, with that cell; a shared cell is listed at each of its parents.

    MindSpore names a child that hangs twice below one parent only once: call again after the exchange.
    """
    wanted = set(map(id, cells))
    return [
        (Place(parent, name), child)
        for _, parent in network.cells_and_names()
        for name, child in parent.name_cells().items()
        if id(child) in wanted
    ]


def reach(value: object) -> Iterator[object]:
    """Yield what a plain attribute leads to, itself too: items, closures, whose method it is, attributes of objects.

    Cells are yielded and not entered, as they are looked at by themselves.
    """
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        waiting += _held_by(item)


def _held_by(item: object) -> list[object]:
    """Return what an object leads to in one step."""
    if isinstance(item, nn.Cell | Tensor | ops.Primitive | type | ModuleType):
        return []
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return list(item)
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, MethodType):
        return [item.__self__]
    if isinstance(item, FunctionType):
        return [cell.cell_contents for cell in item.__closure__ or () if _is_filled(cell)]
    return list(getattr(item, "__dict__", {}).values())


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
