"""What a network has to adapt: its cells by path, and which of them compute as a dense layer does."""

from __future__ import annotations

from functools import cached_property

from mindspore import nn

from mindpet.delta._checks import check_dense
from mindpet.utils.exceptions import InputError

__all__ = ["Network", "as_dense", "is_dense"]


class Network:
    """A network's cells by path, read once.

    Args:
        root: The network. It must not change while this object is used.
    """

    def __init__(self, root: nn.Cell) -> None:
        self.root = root
        self.cells: dict[str, nn.Cell] = {path: cell for path, cell in root.cells_and_names() if path}

    @cached_property
    def dense_paths(self) -> list[str]:
        """The paths of the dense layers, in the network's order."""
        return [path for path, cell in self.cells.items() if is_dense(cell)]


def is_dense(cell: nn.Cell) -> bool:
    """Tell whether a cell is a dense layer; `as_dense` tells whether it can be adapted."""
    return isinstance(cell, nn.Dense)


def as_dense(path: str, cell: nn.Cell) -> nn.Dense:
    """Return a dense layer as an nn.Dense with the very same Parameters.

    Raises:
        InputError: The layer computes something of its own.
    """
    try:
        check_dense(cell)
    except TypeError as error:
        raise InputError(f"{path} cannot be adapted: {error}") from error
    return cell
