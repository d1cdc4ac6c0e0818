"""The self-test: every delta layer, dtype and mode against the float64 formulas, on the device at hand."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor

from mindpet.delta._cases import Probed, central_differences, random_input, randomise, values_of
from mindpet.delta._reference import Array
from mindpet.tuning._trials import TRIALS, Trial
from mindpet.utils.environment import first_line
from mindpet.utils.exceptions import InputError

__all__ = ["DTYPES", "TOLERANCES", "Case", "Record", "Tolerance", "describe_selftest", "measure", "plan"]

# By the device. MindSpore has no bfloat16 matrix product on a CPU.
DTYPES = {"CPU": ("float32", "float16"), "Ascend": ("float32", "float16", "bfloat16")}
_MODES = {"graph": mindspore.GRAPH_MODE, "PyNative": mindspore.PYNATIVE_MODE}


@dataclass(frozen=True)
class Tolerance:
    """The largest error that passes: the largest difference of an array, divided by its largest value.

    Attributes:
        forward: For an output.
        gradient: For the gradient of an input or a parameter.
        source: Where the numbers come from.
    """

    forward: float
    gradient: float
    source: str


TOLERANCES = {
    "float32": Tolerance(2e-4, 4e-4, "MindSpore's tanh in float32 is off by up to 8e-5; a gradient passes it twice"),
    "float16": Tolerance(2**-8, 2**-7, "8 roundings to 11 bits (2^-11 each) in an output, 16 in a gradient"),
    "bfloat16": Tolerance(2**-5, 2**-4, "8 roundings to 8 bits (2^-8 each) in an output, 16 in a gradient"),
}


@dataclass(frozen=True)
class Case:
    """One layer in one dtype and mode.

    Attributes:
        trial: The layer with its formula.
        dtype: The name of the dtype of inputs, added parameters and products.
        mode: 'graph' or 'PyNative'.
    """

    trial: Trial
    dtype: str
    mode: str


@dataclass(frozen=True)
class Record:
    """What came out of a case.

    Attributes:
        layer: The public name.
        dtype: As in the case.
        mode: As in the case.
        forward_error: The largest of the outputs' errors (see `Tolerance`); None where there is no finite number.
        gradient_error: The largest of the gradients' errors, likewise.
        gradient_of: The input or parameter whose gradient has this error.
        failure: What is wrong, in one line, or None when the case passed.
        seconds: How long it took, compiling included.
    """

    layer: str
    dtype: str
    mode: str
    forward_error: float | None
    gradient_error: float | None
    gradient_of: str | None
    failure: str | None
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the layer computed what its formula says."""
        return self.failure is None


def plan(device: str, dtypes: Sequence[str] = ()) -> list[Case]:
    """Return the cases that `measure` is to run on a device, which this process must compute on.

    Args:
        device: The device's name; `mindpet.utils.environment.choose_device` returns it.
        dtypes: Names of dtypes; none stands for all that the device has.

    Raises:
        InputError: The self-test does not know the device, or the device has no such dtype.
    """
    if device not in DTYPES:
        raise InputError(f"device: the self-test runs on {' and '.join(DTYPES)}, not on {device}; choose one of them")
    for dtype in dtypes:
        if dtype not in DTYPES[device]:
            raise InputError(f"dtype: {dtype} cannot be tested on {device}; choose from {', '.join(DTYPES[device])}")
    wanted = [dtype for dtype in DTYPES[device] if not dtypes or dtype in dtypes]
    return [Case(trial, dtype, mode) for trial in TRIALS for dtype in wanted for mode in _MODES]


def measure(case: Case) -> Record:
    """Run a case: its outputs and the gradients of all its inputs and parameters, against the float64 formula.

    The gradients are those of the sum of all outputs, weighted by random numbers; they are compared with central
    differences of the formula. Inputs and parameters are the same random numbers in every dtype, which holds them
    exactly, so that an error is the computation's own. Whatever the layer raises makes the case fail.
    """
    started = time.perf_counter()
    forward = gradient = gradient_of = failure = None
    tolerance = TOLERANCES[case.dtype]
    try:
        with _mode(case.mode):
            comparison = _Comparison(case.trial, getattr(mindspore, case.dtype))
            forward = comparison.forward_error()
            gradient_of, gradient = comparison.gradient_error()
    except Exception as error:  # a missing kernel or a failing compiler is a finding, whatever its type
        failure = f"{type(error).__name__}: {first_line(error)}"
    else:
        failure = _judge(forward, tolerance.forward, "output") or _judge(
            gradient, tolerance.gradient, f"gradient of {gradient_of}"
        )
    return Record(
        case.trial.layer,
        case.dtype,
        case.mode,
        _finite(forward),
        _finite(gradient),
        gradient_of,
        failure,
        time.perf_counter() - started,
    )


def describe_selftest(device: str, records: Sequence[Record]) -> dict[str, Any]:
    """Return the records of a device, with their tolerances and a verdict, in a form that JSON has."""
    return {
        "device": device,
        "passed": all(record.passed for record in records),
        "seconds": sum(record.seconds for record in records),
        "tolerances": {record.dtype: asdict(TOLERANCES[record.dtype]) for record in records},
        "cases": [{**asdict(record), "passed": record.passed} for record in records],
    }


@contextmanager
def _mode(name: str) -> Iterator[None]:
    before = mindspore.get_context("mode")
    mindspore.set_context(mode=_MODES[name])
    try:
        yield
    finally:
        mindspore.set_context(mode=before)


class _Comparison:
    """A trial's network with random parameters, beside the formula with the same ones."""

    def __init__(self, trial: Trial, dtype: Any) -> None:
        self.trial = trial
        self.dtype = dtype
        self.network = randomise(trial.build(dtype))
        self.network.set_train()
        self.exact = [item.copy() for item in trial.inputs]
        self.values = {name.removeprefix("layer."): value for name, value in values_of(self.network).items()}
        self.constants = trial.detached(self.values)
        self.expected = self._formula()

    def forward_error(self) -> float:
        """Return the worst error of an output; NaN is the worst of all."""
        outputs = self.network(*self._inputs())
        errors = [_error(_exact(output), value) for output, value in zip(outputs, self.expected, strict=True)]
        return float(np.max(errors))

    def gradient_error(self) -> tuple[str, float]:
        """Return the input or parameter whose gradient is worst, and its error; NaN is the worst of all."""
        probes = [random_input(output.shape, np.float64, seed) for seed, output in enumerate(self.expected)]
        computed = self._gradients(probes)

        def scalar() -> float:
            return sum(float((output * probe).sum()) for output, probe in zip(self._formula(), probes, strict=True))

        variables = {f"input {position}": item for position, item in enumerate(self.exact)} | self.values
        errors = {
            name: _error(gradient, central_differences(scalar, variables[name])) for name, gradient in computed.items()
        }
        worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]))
        return worst, errors[worst]

    def _gradients(self, probes: Sequence[Array]) -> dict[str, Array]:
        """Return what the device computes, by the names of inputs and parameters."""
        weights = {
            name.removeprefix("layer."): parameter
            for name, parameter in self.network.parameters_and_names()
            if parameter.requires_grad
        }
        due = [name for name in self.values if self.trial.trains(name)]
        if list(weights) != due:
            raise ValueError(f"trains {', '.join(weights)} instead of {', '.join(due)}")
        inputs = self._inputs()
        positions = tuple(range(len(inputs)))
        gradients = mindspore.grad(Probed(self.network, probes), positions, list(weights.values()) or None)(*inputs)
        by_input, by_weight = gradients if weights else (gradients, ())
        if len(inputs) == 1:  # MindSpore leaves the tuple out then
            by_input = (by_input,)
        names = [*(f"input {position}" for position in positions), *weights]
        return {name: _exact(value) for name, value in zip(names, (*by_input, *by_weight), strict=True)}

    def _formula(self) -> tuple[Array, ...]:
        return self.trial.formula(self.exact, self.values | self.constants)

    def _inputs(self) -> list[Tensor]:
        return [Tensor(item, mindspore.float32).astype(self.dtype) for item in self.trial.inputs]


def _exact(tensor: Tensor) -> Array:
    """Return a tensor in float64."""
    return tensor.astype(mindspore.float32).asnumpy().astype(np.float64)


def _error(computed: Array, expected: Array) -> float:
    """Return the largest difference, divided by the largest expected value."""
    if computed.shape != expected.shape:
        raise ValueError(f"computes the shape {computed.shape} instead of {expected.shape}")
    return float(np.abs(computed - expected).max() / np.abs(expected).max())


def _judge(error: float, tolerance: float, what: str) -> str | None:
    """Return what is wrong with an error, NaN included, or None."""
    return None if error <= tolerance else f"{what} is off by {error:.1e}"


def _finite(error: float | None) -> float | None:
    return error if error is not None and np.isfinite(error) else None
