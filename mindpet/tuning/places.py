"""Where cells hang in a network, and exchanging them so that parameters keep their names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mindspore import nn

from mindpet.utils.exceptions import InputError

__all__ = ["Place", "find_places"]


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
