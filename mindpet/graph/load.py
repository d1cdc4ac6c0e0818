"""Reading back what TrainableParamsCheckPoint has written."""

import os
import re
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from mindspore import Parameter, Tensor, nn

from mindpet.graph.checkpoint_names import checksum_path, find_checkpoints
from mindpet.graph.checksums import is_whole, read_checkpoint
from mindpet.graph.parameters import canonical_name, trainable_parameters
from mindpet.utils.exceptions import InputError

__all__ = [
    "PathLike",
    "UnverifiedCheckpointWarning",
    "check_fit",
    "check_network",
    "is_state",
    "list_paths",
    "load_trainable",
    "newest_whole",
    "warn_unverified",
]

PathLike = str | os.PathLike[str]

_LISTED = 20

# What MindSpore's optimizers and loss scales call their state: for each parameter, as in adam_m.<parameter>, and alone.
_STATES_OF_A_PARAMETER = {
    *("accu_grads", "accum", "accum_update", "adam_m", "adam_v", "ax_", "eta", "exp_avg", "exp_avg_sq"),
    *("exp_avg_sq_col", "exp_avg_sq_row", "lamb_m", "lamb_v", "linear", "mean_grad", "mean_square", "moment"),
    *("moment1", "moment2", "moments", "mu", "prev", "stat", "step_size", "vhat"),
}
_STATES_OF_A_STEP = re.compile(
    r"global_step|afactor_step|learning_rate(_group_\d+)?|momentum|beta[12]_power|scale_sense|current_iterator_step"
    r"|last_overflow_iterator_step"
)


class UnverifiedCheckpointWarning(UserWarning):
    """A checkpoint without checksums beside it was loaded: nothing tells whether it is undamaged."""


def load_trainable(
    net: nn.Cell, files: PathLike | Sequence[PathLike], *, dec_key: bytes | None = None, dec_mode: str = "AES-GCM"
) -> None:
    """Load checkpoints of the trainable parameters into a network, all of them or nothing.

    The network must be frozen as it was for training, and may already hold the base model's values. Together the files
    must give every trainable parameter exactly once, in its shape and dtype, and nothing else. What 1.x wrote is
    understood: its names (`mindpet_delta_lora_A`, `tk_delta_...`), and the state of one of MindSpore's optimizers and
    loss scales beside the parameters, which is left aside.

    Args:
        net: The network; it keeps its Parameter objects and gets new values.
        files: One .ckpt file or several. Checksums beside a file are checked; a file without them is loaded with an
            `UnverifiedCheckpointWarning`.
        dec_key: The key of encrypted files.
        dec_mode: Their encryption: 'AES-GCM', 'AES-CBC' or 'SM4-CBC'.

    Raises:
        TypeError: `net` is no Cell, or `files` holds something that is no path.
        InputError: A file does not exist, cannot be read or differs from its checksums; or parameters are missing,
            unexpected, given twice, or of another shape or dtype. The message lists them; the network is unchanged.
    """
    check_network(net)
    paths = list_paths("files", files)
    values = _read_values(net, paths, dec_key, dec_mode)
    parameters = {canonical_name(name): parameter for name, parameter in trainable_parameters(net).items()}
    check_fit(net, parameters, values, paths)
    for name, parameter in parameters.items():
        parameter.set_data(values[name])
    warn_unverified(paths)


def newest_whole(directory: PathLike, prefix: str = "DELTA_CKP") -> Path | None:
    """Return the newest checkpoint in a folder that agrees with its checksums, or None if there is none.

    Newer is a higher run number, then a higher epoch, then a higher step. Encrypted files need no key here.

    Args:
        directory: The folder that was given to TrainableParamsCheckPoint.
        prefix: The prefix that was given to it.

    Raises:
        InputError: There is no such folder, or it cannot be read.
    """
    try:
        checkpoints = find_checkpoints(Path(directory), prefix)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be read ({error.strerror or error}); name the folder of the checkpoints."
        ) from error
    return next((path for path in reversed(checkpoints) if is_whole(path)), None)


def check_network(net: nn.Cell) -> None:
    """Raise TypeError unless the network is a Cell."""
    if not isinstance(net, nn.Cell):
        raise TypeError(f"The network is a {type(net).__name__}; give a mindspore.nn.Cell.")


def list_paths(argument: str, value: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return the paths that were given for an argument.

    Raises:
        TypeError: The value is neither a path nor a list of paths.
        InputError: The list is empty.
    """
    several = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(several, Sequence) or not all(isinstance(path, str | os.PathLike) for path in several):
        raise TypeError(f"{argument} is {value!r}; give the path of a file, or a list of such paths.")
    if not several:
        raise InputError(f"{argument} is an empty list; give at least one file.")
    return [Path(path) for path in several]


def warn_unverified(paths: Iterable[Path]) -> None:
    """Warn the caller's caller of each checkpoint without checksums."""
    for path in paths:
        if not checksum_path(path).exists():
            message = f"{path} has no {checksum_path(path).name} beside it: loaded unverified."
            warnings.warn(message, UnverifiedCheckpointWarning, stacklevel=3)


def _read_values(net: nn.Cell, paths: list[Path], dec_key: bytes | None, dec_mode: str) -> dict[str, Tensor]:
    """Return all tensors by their names in version 2, but for an optimizer's state."""
    own = {canonical_name(parameter.name) for parameter in net.get_parameters()}
    values: dict[str, Tensor] = {}
    for path in paths:
        content = read_checkpoint(path, dec_key, dec_mode)
        held = {canonical_name(name) for name in content}
        for written, tensor in content.items():
            name = canonical_name(written)
            if name not in own and is_state(name, held):
                continue
            if name in values:
                raise InputError(f"{path} gives {written}, which was given before; name each parameter's file once.")
            values[name] = tensor
    return values


def is_state(name: str, held: Container[str]) -> bool:
    """Tell whether an entry is the state of a training step, or of a parameter that the same file holds."""
    return _STATES_OF_A_STEP.fullmatch(name) is not None or any(
        name[: separator.start()] in _STATES_OF_A_PARAMETER and name[separator.end() :] in held
        for separator in re.finditer("[._]", name)
    )


def check_fit(
    net: nn.Cell, parameters: Mapping[str, Parameter], values: Mapping[str, Tensor], paths: Sequence[Path]
) -> None:
    """Check that values are there for exactly these parameters of the network, in their shapes and dtypes.

    Args:
        net: The network.
        parameters: The parameters to load, by their names in version 2.
        values: The values that the files give, by their names in version 2.
        paths: The files.

    Raises:
        InputError: Something does not fit; the message lists it.
    """
    others = {canonical_name(parameter.name) for parameter in net.get_parameters()} - parameters.keys()
    problems = [f"{name} is missing" for name in parameters.keys() - values.keys()]
    for name, value in values.items():
        if name in others:
            problems.append(f"{name} is frozen in the network")
        elif name not in parameters:
            problems.append(f"{name} is unknown to the network")
        elif (value.shape, value.dtype) != (parameters[name].shape, parameters[name].dtype):
            expected = f"{parameters[name].shape} {parameters[name].dtype}"
            problems.append(f"{name} is {value.shape} {value.dtype} and not {expected}")
    if problems:
        listed = "; ".join(sorted(problems)[:_LISTED])
        rest = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InputError(
            f"{', '.join(map(str, paths))} does not fit the network: {listed}{rest}. Nothing was loaded; attach and"
            " freeze the network as for the training that wrote the file."
        )
