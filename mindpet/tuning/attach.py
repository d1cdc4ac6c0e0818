"""Attach a method to any network in one call: plan and check everything, then swap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mindspore import nn
from mindspore.common import dtype as mstype

from mindpet.delta.lora import LoRADense
from mindpet.graph.freeze_utils import freeze_delta
from mindpet.tuning.config import LoraConfig
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["get_peft_model"]


@dataclass(frozen=True)
class _Place:
    """Where a cell hangs in the network: the cell above it and its name there."""

    parent: nn.Cell
    name: str

    def put(self, cell: nn.Cell) -> None:
        """Hang `cell` here. MindSpore renames the parameters of a cell that is assigned, so names are put back."""
        names = [(parameter, parameter.name) for parameter in cell.get_parameters()]
        if isinstance(self.parent, nn.CellList | nn.SequentialCell):
            self.parent[int(self.name)] = cell
        else:
            setattr(self.parent, self.name, cell)
        for parameter, name in names:
            parameter.name = name


def get_peft_model(network: nn.Cell, config: LoraConfig, compute_dtype: mstype.Type | None = None) -> nn.Cell:
    """Put LoRA on the layers that `config` names and freeze everything but it and `modules_to_save`.

    The network is changed in place; its own parameters stay the same objects under the same names, so its old
    checkpoints still load. Nothing is changed when an error is raised.

    Args:
        network: Any network whose layers to adapt are `nn.Dense`.
        config: What to attach.
        compute_dtype: The dtype of the adapted layers' products; that of each layer's weight by default.

    Returns:
        `network` itself.

    Raises:
        InputError: An entry of `target_modules` or `modules_to_save` matches no cell, or `network` is adapted already.
    """
    cells = dict(network.cells_and_names())
    if any(isinstance(cell, LoRADense) for cell in cells.values()):
        raise InputError("the network has LoRA layers already; attach to a network without them")
    dense_paths = [path for path, cell in cells.items() if isinstance(cell, nn.Dense)]
    targets = _match("target_modules", config.target_modules, dense_paths, "nn.Dense cell")
    saved = _match("modules_to_save", config.modules_to_save, [path for path in cells if path], "cell")
    twins = {
        id(cells[path]): LoRADense.from_dense(
            cells[path], config.r, config.lora_alpha, config.lora_dropout, compute_dtype=compute_dtype
        )
        for path in targets
    }
    swaps = [(place, twins[id(cell)]) for place, cell in _places(network) if id(cell) in twins]
    for place, twin in swaps:
        place.put(twin)
    freeze_delta(network, "lora", exclude=[f"{path}.*" for path in saved] or None)
    return network


def _match(field: str, entries: Iterable[str], paths: list[str], kind: str) -> list[str]:
    """Return the paths, in order, that equal an entry or end in it at a dot; each entry must match."""
    matched: set[str] = set()
    for entry in entries:
        found = {path for path in paths if path == entry or path.endswith(f".{entry}")}
        if not found:
            nearest = nearest_names(entry, {path.rsplit(".", 1)[-1] for path in paths} | set(paths))
            hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
            raise InputError(f"{field}: {entry!r} is the name or path suffix of no {kind} of the network{hint}")
        matched |= found
    return [path for path in paths if path in matched]


def _places(network: nn.Cell) -> list[tuple[_Place, nn.Cell]]:
    """List each place of the network with the cell that hangs there; a shared cell is listed at each of its places."""
    return [
        (_Place(parent, name), child)
        for _, parent in network.cells_and_names()
        for name, child in parent.name_cells().items()
    ]
