"""Strategy files, and how the devices of a pipeline stage share a parameter by them.

MindSpore's planner arranges the devices of a stage as a grid and lets axes of the grid cut axes of a parameter. Devices
that differ only in the other axes of the grid hold copies of one slice, unless the optimizer is parallel too: then they
share the slice, cut again along its first axis. A strategy file lists the parameters that are trained, and the
optimizer's state.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore.parallel import build_searched_strategy

from mindpet.storage.reader import require_file
from mindpet.utils.exceptions import InputError

__all__ = ["Layout", "Stage", "is_state_of", "read_stages"]

_Place = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How the devices of a stage share one parameter.

    Attributes:
        grid: The lengths of the axes of the devices' grid; the last axis runs fastest over the ranks.
        cuts: For each axis of the parameter the axes of the grid that cut it, the slowest first.
        lengths: How long the slices are along the first axis, where they differ; else nothing.
        fields: Into how many equal fields the rows of each slice fall, each of which is cut by itself; 0 for none.
        shares: Among how many devices a parallel optimizer shares a slice: 0 for none, -1 for all that would hold it.
    """

    grid: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...] = ()
    fields: int = 0
    shares: int = 0

    @property
    def counts(self) -> tuple[int, ...]:
        """Into how many slices each axis of the parameter is cut."""
        return tuple(math.prod(self.grid[axis] for axis in axes) for axes in self.cuts)

    def place(self, rank: int) -> _Place:
        """Return along each axis of the parameter the number of the slice that a device of the stage holds."""
        position = np.unravel_index(rank, self.grid)
        numbers = []
        for axes in self.cuts:
            number = 0
            for axis in axes:
                number = number * self.grid[axis] + int(position[axis])
            numbers.append(number)
        return tuple(numbers)

    def join(self, held: Sequence[np.ndarray]) -> np.ndarray:
        """Return the whole parameter from what the devices of the stage hold, in the order of their ranks.

        Raises:
            ValueError: The layout does not describe them, or copies of one slice differ.
        """
        self._check(held)
        holders: dict[_Place, list[np.ndarray]] = defaultdict(list)
        for rank, part in enumerate(held):
            holders[self.place(rank)].append(part)
        slices = {place: self._join_shares(parts) for place, parts in holders.items()}
        self._check_lengths(slices)
        if not self.fields:
            return _assemble(slices, self.counts)
        rows = {place: part.reshape(self.fields, -1, *part.shape[1:]) for place, part in slices.items()}
        joined = _assemble({(0, *place): part for place, part in rows.items()}, (1, *self.counts))
        return joined.reshape(-1, *joined.shape[2:])

    def _check(self, held: Sequence[np.ndarray]) -> None:
        if len(held) != math.prod(self.grid):
            raise ValueError(f"{len(held)} devices hold it, and the strategy is for {math.prod(self.grid)}")
        shapes = {part.shape if not self.lengths else part.shape[1:] for part in held}
        if len(shapes) > 1 or len({part.dtype for part in held}) > 1:
            found = sorted({f"{part.shape} {part.dtype}" for part in held})
            raise ValueError(f"its slices are {' and '.join(found)}")
        if held[0].ndim != len(self.cuts):
            raise ValueError(f"its slices have {held[0].ndim} axes, and the strategy is for {len(self.cuts)}")
        if self.fields and (held[0].ndim == 0 or held[0].shape[0] % self.fields):
            raise ValueError(f"its slices are {held[0].shape}, which do not fall into {self.fields} fields")

    def _join_shares(self, parts: list[np.ndarray]) -> np.ndarray:
        """Return the slice that is held in these parts: copies of it, or one or more sets of shares of it."""
        share = len(parts) if self.shares < 0 else max(self.shares, 1)
        if len(parts) % share or (share > 1 and parts[0].ndim == 0):
            raise ValueError(f"{len(parts)} devices cannot share a slice of it by {share}")
        copies = [np.concatenate(parts[i : i + share]) if share > 1 else parts[i] for i in range(0, len(parts), share)]
        if any(copy.tobytes() != copies[0].tobytes() for copy in copies[1:]):
            raise ValueError("devices that hold copies of one slice hold different values")
        return copies[0]

    def _check_lengths(self, slices: dict[_Place, np.ndarray]) -> None:
        if not self.lengths:
            return
        found = tuple(slices[place].shape[0] for place in np.ndindex(self.counts))
        if found != self.lengths:
            raise ValueError(f"its slices have {found} rows, and the strategy is for {self.lengths}")


@dataclass(frozen=True)
class Stage:
    """What a strategy file says of one pipeline stage.

    Attributes:
        file: The strategy file.
        layouts: The layouts of the stage's parameters, by name.
        devices: How many devices the stage has.
    """

    file: Path
    layouts: dict[str, Layout]
    devices: int


def read_stages(files: Sequence[Path]) -> list[Stage]:
    """Read the strategy of all pipeline stages.

    Args:
        files: The strategy files of the stages in their order, or one that MindSpore's `merge_pipeline_strategys` has
            made of them. `.json` files are JSON, all others protocol buffers.

    Raises:
        InputError: A file does not exist or is no strategy file, or stages are missing from a merged file.
    """
    return [stage for file in files for stage in _read_file(require_file(file))]


def is_state_of(name: str, parameters: set[str]) -> bool:
    """Tell whether a name is that of an optimizer's state: `adam_m.<parameter>`, `exp_avg_sq_<parameter>` and so on."""
    return any(name[separator.end() :] in parameters for separator in re.finditer("[._]", name))


def _read_file(file: Path) -> list[Stage]:
    try:
        found = build_searched_strategy(str(file))
        layouts = {name: _read_layout(layout) for name, layout in found.items()}
    except Exception as error:  # MindSpore raises whatever its parser meets in a damaged file.
        cause = " ".join(str(error).split())
        raise InputError(
            f"{file} cannot be read as a strategy file ({cause}); give the file that the training has saved under the"
            " save_file of its strategy_ckpt_config."
        ) from error
    if not layouts:
        raise InputError(f"{file} holds the layout of no parameter; give the file that the training has saved.")
    return [_make_stage(file, stage) for stage in _split_stages(file, layouts)]


def _read_layout(layout: Any) -> Layout:
    """Return a layout as MindSpore's own message holds it, which counts the axes of the grid from its end."""
    grid = tuple(layout.dev_matrix[0].dim)
    # One message holds a grid axis for each axis of the parameter; several hold each the grid axes that cut one.
    several = [tuple(axes.dim) for axes in layout.tensor_map]
    several = [(axis,) for axis in several[0]] if len(several) == 1 else [axes for axes in several if axes]
    cuts = tuple(tuple(len(grid) - 1 - axis for axis in axes if axis != -1) for axes in several)
    used = [axis for axes in cuts for axis in axes]
    if not grid or min(grid) < 1 or len(set(used)) < len(used) or not all(0 <= axis < len(grid) for axis in used):
        raise ValueError(f"a parameter is cut along {cuts} of the devices {grid}")
    lengths = tuple(length for message in layout.param_split_shape for length in message.dim)
    return Layout(grid, cuts, lengths, int(layout.field), int(layout.opt_weight_shard_size))


def _split_stages(file: Path, layouts: dict[str, Layout]) -> list[dict[str, Layout]]:
    """Return the layouts of each stage; a merged file has the stage's number and a hyphen before each name."""
    if not all(re.match(r"\d+-.", name) for name in layouts):
        return [layouts]
    stages: dict[int, dict[str, Layout]] = defaultdict(dict)
    for name, layout in layouts.items():
        number, _, own_name = name.partition("-")
        stages[int(number)][own_name] = layout
    if sorted(stages) != list(range(len(stages))):
        raise InputError(
            f"{file} holds the pipeline stages {sorted(stages)}, and some are missing; merge the files of all stages."
        )
    return [stages[number] for number in range(len(stages))]


def _make_stage(file: Path, layouts: dict[str, Layout]) -> Stage:
    counts = {math.prod(layout.grid) for layout in layouts.values()}
    if len(counts) > 1:
        raise InputError(f"{file} is damaged: one stage cannot have {sorted(counts)} devices; give an undamaged copy.")
    return Stage(file, layouts, counts.pop())


def _assemble(slices: dict[_Place, np.ndarray], counts: tuple[int, ...], begin: _Place = ()) -> np.ndarray:
    """Join the slices whose place begins with `begin` along all further axes."""
    axis = len(begin)
    if axis == len(counts):
        return slices[begin]
    parts = [_assemble(slices, counts, (*begin, number)) for number in range(counts[axis])]
    return np.concatenate(parts, axis) if len(parts) > 1 else parts[0]
