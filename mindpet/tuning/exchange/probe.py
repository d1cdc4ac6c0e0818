"""The golden probe: outputs that base and adapter gave when the adapter was saved, and must give again.

Every cell is run as it is, alone, on a small input that a seed gives. A network into which the same adapter was loaded
truly gives the same numbers, but for rounding.
"""

from __future__ import annotations

import base64
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mindspore
import numpy as np
from mindspore import Tensor, nn

from mindpet.delta.trainable_tokens import TrainableTokensEmbedding
from mindpet.tuning.exchange.record import Input, Probe, Record, Tolerance
from mindpet.tuning.exchange.subjects import Subject, coarsest, find_subjects, whole_network
from mindpet.tuning.exchange.traceless import quiet
from mindpet.tuning.exchange.values import read
from mindpet.tuning.state import PeftState
from mindpet.utils.environment import first_line
from mindpet.utils.exceptions import InputError

__all__ = ["CELL_TOLERANCE", "NETWORK_TOLERANCE", "Outcome", "has_effect", "record_probes", "repeat_probes"]

# 2e-4 is what MindSpore's tanh allows, the others are 8 roundings to 11 and 8 bits.
CELL_TOLERANCE = Tolerance(float32=2e-4, float16=2**-8, bfloat16=2**-5)
# A whole network rounds in each of its layers.
NETWORK_TOLERANCE = Tolerance(float32=1e-3, float16=2**-5, bfloat16=2**-3)
_MOST_NUMBERS = 1 << 16  # that are kept of an output


@dataclass(frozen=True)
class Outcome:
    """How the probes came out.

    Attributes:
        difference: The largest difference of the probe that comes closest to its tolerance, divided by the largest
            number expected.
        tolerance: What it may be.
        place: The path of that cell, or 'the whole network'.
        cells: How many cells were run.
        ran_network: Whether the whole network was run.
    """

    difference: float
    tolerance: float
    place: str
    cells: int
    ran_network: bool

    @property
    def passed(self) -> bool:
        """Whether every probe is within its tolerance; NaN is not."""
        return self.difference <= self.tolerance


def record_probes(network: nn.Cell, state: PeftState) -> tuple[dict[str, Probe], Probe | None]:
    """Run the probe of each adapted cell, and of the whole network where its inputs are known.

    Returns:
        The probes of the cells by path, and that of the network; None, with a warning, if it does not take the inputs.

    Raises:
        InputError: A cell cannot be run on this device.
    """
    whole = whole_network(network, state)
    with quiet(network):
        cells = {subject.path: _record(subject) for subject in find_subjects(network, state)}
        try:
            return cells, _record(whole) if whole else None
        except InputError as error:
            warnings.warn(f"the adapter is saved without a probe of the whole network: {error}", stacklevel=4)
            return cells, None


def repeat_probes(network: nn.Cell, state: PeftState, record: Record, dtypes: Sequence[str]) -> Outcome | None:
    """Run the probes of a record on a network to which the adapter has been loaded.

    Args:
        network: The network.
        state: What is attached to it.
        record: What came with the adapter.
        dtypes: Those that tensors of the base have been rounded to since.

    Returns:
        How they came out; None where there was nothing that could be run.

    Raises:
        InputError: The network has other cells or inputs than the record, or a cell cannot be run on this device.
    """
    subjects = {subject.path: subject for subject in find_subjects(network, state)}
    if subjects.keys() != record.cells.keys():
        odd = min(subjects.keys() ^ record.cells.keys())
        raise InputError(f"the probe and this network disagree on the adapted cell {odd}; load onto the adapter's base")
    jobs = [(subjects[path], probe, record.cell_tolerance) for path, probe in record.cells.items()]
    whole = whole_network(network, state) if record.network else None
    if whole and record.network:
        jobs.append((whole, record.network, record.network_tolerance))
    outcomes = []
    with quiet(network):
        for subject, probe, tolerance in jobs:
            allowed = getattr(tolerance, coarsest([probe.dtype, subject.dtype, *dtypes]))
            difference = _difference(subject, probe)
            outcomes.append(Outcome(difference, allowed, _name(subject), len(record.cells), whole is not None))
    return max(outcomes, key=lambda one: (not one.passed, one.difference / one.tolerance), default=None)


def has_effect(network: nn.Cell, state: PeftState) -> bool:
    """Tell whether the adapter changes anything; before training many change nothing yet.

    A prefix always does, a marked parameter once its value differs from that before attaching, a replaced layer once
    the change of its weight, or of its output on the probe, is not exactly zero.
    """
    if state.feeds:
        return True
    if any(not np.array_equal(state.parameters[name].asnumpy(), before) for name, before in state.marked.items()):
        return True
    with quiet(network):
        return any(map(_changes_output, find_subjects(network, state)))


def _record(subject: Subject) -> Probe:
    seed = zlib.crc32(subject.path.encode())
    output = _run(subject.cell, subject, seed)
    step = max(1, -(-output.size // _MOST_NUMBERS))
    kept = output.ravel()[::step]
    if not np.isfinite(kept).all():
        raise InputError(f"{_name(subject)} gives NaN or infinite numbers; train with a lower learning rate")
    return Probe(
        seed=seed,
        inputs=subject.inputs,
        dtype=subject.dtype,
        shape=output.shape,
        step=step,
        output=base64.b64encode(kept.astype("<f4").tobytes()).decode("ascii"),
    )


def _difference(subject: Subject, probe: Probe) -> float:
    """Return the largest difference of a subject's output, divided by the largest number expected."""
    if subject.inputs != probe.inputs:
        raise InputError(f"{_name(subject)} takes other inputs than the adapter's probe; load onto the adapter's base")
    output, expected = _run(subject.cell, subject, probe.seed), probe.expected
    kept = output.ravel()[:: probe.step]
    if output.shape != probe.shape or kept.shape != expected.shape:
        raise InputError(
            f"{_name(subject)} gives an output of shape {output.shape} and not {probe.shape}; load onto the adapter's"
            " base"
        )
    scale = np.abs(expected).max(initial=0.0)
    difference = np.abs(kept - expected).max(initial=0.0)
    return float(difference / scale) if scale else float(difference)


def _changes_output(subject: Subject) -> bool:
    """Tell whether a replaced layer computes something else than the plain one, by every way that can tell."""
    if subject.plain is None:
        return False
    ways = [_differ_in_outputs, _differ_in_weights] if hasattr(subject.cell, "merged_values") else [_differ_in_outputs]
    if isinstance(subject.cell, TrainableTokensEmbedding):
        ways = [_differ_in_weights]  # a few inputs of all words seldom hold the trained ones
    for differ in ways:
        try:
            if not differ(subject.cell, subject.plain, subject):
                return False
        except InputError:  # a CPU has no products in bfloat16, and some convolutions have no merged weight
            continue
    return True


def _differ_in_weights(cell: nn.Cell, plain: nn.Cell, subject: Subject) -> bool:
    return any(
        not np.array_equal(values, read(getattr(plain, name)).values) for name, values in cell.merged_values().items()
    )


def _differ_in_outputs(cell: nn.Cell, plain: nn.Cell, subject: Subject) -> bool:
    return not np.array_equal(_run(cell, subject, 0), _run(plain, subject, 0))


def _run(cell: nn.Cell, subject: Subject, seed: int) -> np.ndarray:
    """Return the output of a cell in float32; several outputs one after another, without axes."""
    inputs = [Tensor(values) for values in _make_inputs(subject.inputs, seed)]
    floating = getattr(mindspore, subject.input_dtype)
    arguments = [value.astype(floating) if value.dtype == mindspore.float32 else value for value in inputs]
    try:
        output = cell(*arguments)
        found = output if isinstance(output, tuple | list) else (output,)
        arrays = [read(one).values.astype(np.float32) for one in found if isinstance(one, Tensor)]
        arrays = _drop_hidden(cell, arrays)
        return arrays[0] if len(arrays) == 1 else np.concatenate([array.ravel() for array in arrays])
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{_name(subject)} cannot be run here ({first_line(error)}); attach with a compute_dtype that this device"
            " has"
        ) from error


def _drop_hidden(cell: nn.Cell, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Leave out what a prefix cell hides: the room for more tokens than the adapter has."""
    visible = getattr(cell, "mindpet_state_visible", None)
    if visible is None:
        return arrays
    key, value, mask = arrays
    seen = np.ones(key.shape[1], bool)
    seen[: visible.size] = visible.asnumpy() != 0
    return [key[:, seen], value[:, seen], mask[..., seen]]


def _make_inputs(inputs: Mapping[str, Input], seed: int) -> list[np.ndarray]:
    """Return the inputs as `Input` describes them: floating numbers as float32, all others as int32."""
    generator = np.random.RandomState(seed)  # its numbers stay the same in every version of NumPy
    return [_make_input(one, generator) for one in inputs.values()]


def _make_input(one: Input, generator: np.random.RandomState) -> np.ndarray:
    if one.kind == "numbers":
        return (generator.randint(-128, 129, one.shape) / 64).astype(np.float32)
    if one.kind == "indices":
        return generator.randint(0, one.below, one.shape).astype(np.int32)
    if one.kind == "open":
        return np.zeros(one.shape, np.float32)
    values = np.zeros(one.shape, np.int32)
    if one.kind == "padded":
        values[:] = 1
        values[-1, one.shape[-1] - one.shape[-1] // 4 :] = 0
    return values


def _name(subject: Subject) -> str:
    return subject.path or "the whole network"
