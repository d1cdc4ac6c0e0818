"""What a merge does to each layer: how far its output moves, and how many weights rounding leaves as they were."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindpet.delta._host import in_float64
from mindpet.tuning.rounding import FLOATS, round_to
from mindpet.tuning.state import Replacement

__all__ = ["TOLERANCES", "MergeReport", "MergedCell", "compare", "passing_dtypes", "tolerance_for"]

# The largest difference of an output that a merge may make, relative to the layer's largest output: rounding a weight
# to nearest moves it by up to 2^-24, 2^-11 and 2^-8 of itself, and the sum of many such errors is no larger.
TOLERANCES = {"float32": 2.0**-20, "float16": 2.0**-9, "bfloat16": 2.0**-6}

Values = Mapping[str, np.ndarray]

_PROBES = 2  # inputs on which a layer is compared


@dataclass(frozen=True)
class MergedCell:
    """What merging one layer did.

    Attributes:
        path: The layer's path.
        method: The method's name.
        dtype: The dtype of its weight.
        difference: The largest difference between what base and adapter compute, in float64, and what the merged
            weights compute, on a seeded probe.
        relative: The same, divided by the layer's largest output.
        changed: How many weights the adapter changes.
        swallowed: How many of these are what they were, because the change is less than half a unit in their last
            place.
    """

    path: str
    method: str
    dtype: str
    difference: float
    relative: float
    changed: int
    swallowed: int


@dataclass(frozen=True)
class MergeReport:
    """What a merge did; printed, it is a short text.

    Attributes:
        cells: One entry for each layer.
        kept_bytes: The size of the base weights that are kept on the host.
    """

    cells: tuple[MergedCell, ...]
    kept_bytes: int

    @property
    def difference(self) -> float:
        """The largest difference of any layer's output."""
        return max((cell.difference for cell in self.cells), default=0.0)

    @property
    def relative(self) -> float:
        """The largest difference of any layer's output, each divided by the layer's largest output."""
        return max((cell.relative for cell in self.cells), default=0.0)

    @property
    def swallowed(self) -> float:
        """The share of changed weights that rounding has left as they were, from 0 to 1."""
        changed = sum(cell.changed for cell in self.cells)
        return sum(cell.swallowed for cell in self.cells) / changed if changed else 0.0

    def __str__(self) -> str:
        if not self.cells:
            return "No layer had to be changed: what was trained are the network's own parameters."
        dtypes = ", ".join(sorted({cell.dtype for cell in self.cells}))
        lines = [
            f"{len(self.cells)} layers merged into {dtypes} weights.",
            f"Largest difference of an output: {self.difference:.2e}, {self.relative:.2e} of the layer's largest.",
            f"Changes lost to rounding: {self.swallowed:.2%} of the changed weights.",
        ]
        kept = f"{self.kept_bytes / 2**20:,.1f} MiB of base weights are kept for unmerge."
        return "\n".join([*lines, kept if self.kept_bytes else "No base weights are kept: unmerge needs base=FOLDER."])


def tolerance_for(dtype: str, tolerance: float | None) -> float:
    """Return the tolerance that holds for a layer: the one given, else that of its dtype."""
    return TOLERANCES[dtype] if tolerance is None else tolerance


def compare(replacement: Replacement, base: Values, rounded: Values) -> MergedCell:
    """Compare what a layer computes with what its base would compute with the rounded values, each by attribute."""
    exact = _exact_values(replacement)
    difference, relative = _difference(replacement, exact, base, rounded)
    changed = {name: exact[name] != base[name].astype(np.float64) for name in exact}
    lost = {name: changed[name] & (rounded[name] == base[name]) for name in exact}
    return MergedCell(
        replacement.path,
        replacement.method,
        next(iter(base.values())).dtype.name,
        difference,
        relative,
        sum(int(mask.sum()) for mask in changed.values()),
        sum(int(mask.sum()) for mask in lost.values()),
    )


def passing_dtypes(replacements: Sequence[Replacement], tolerance: float | None) -> list[str]:
    """Return the dtypes of the base in which merging these layers would be within tolerance."""
    passing = list(FLOATS)
    for replacement in replacements:
        exact, summed = _exact_values(replacement), replacement.cell.merged_values()
        for dtype in list(passing):
            rounded = {name: round_to(values, dtype) for name, values in summed.items()}
            if _difference(replacement, exact, exact, rounded)[1] > tolerance_for(dtype, tolerance):
                passing.remove(dtype)
    return passing


def _exact_values(replacement: Replacement) -> dict[str, np.ndarray]:
    with in_float64():
        return replacement.cell.merged_values()


def _difference(replacement: Replacement, exact: Values, base: Values, rounded: Values) -> tuple[float, float]:
    """Return the largest difference of the outputs, and the same divided by the largest output."""
    with np.errstate(invalid="ignore", over="ignore"):  # numbers that are too large for the dtype are infinite
        wanted, before, merged = (_outputs(replacement, values) for values in (exact, base, rounded))
        difference = float(np.abs(merged - wanted).max())
    if difference == 0:
        return 0.0, 0.0
    if not np.isfinite(difference):
        return math.inf, math.inf
    return difference, difference / float(max(np.abs(before).max(), np.abs(wanted).max()))


def _outputs(replacement: Replacement, values: Values) -> np.ndarray:
    """Return what a layer's weights make of its probe, in float64, before any bias that is not among them.

    A table's rows are its outputs; a dense layer sees two rows and a convolution two windows.
    """
    if "embedding_table" in values:
        return values["embedding_table"].astype(np.float64)
    weight = values["weight"].astype(np.float64)
    matmul = getattr(replacement.cell, "matmul", None)
    if matmul is not None and not matmul.transpose_b:
        weight = weight.T
    weight = weight.reshape(len(weight), -1)
    generator = np.random.RandomState(zlib.crc32(replacement.path.encode()))  # the same in every version of NumPy
    x = generator.normal(size=(_PROBES, weight.shape[1]))
    outputs = x @ weight.T
    return outputs + values["bias"].astype(np.float64) if "bias" in values else outputs
