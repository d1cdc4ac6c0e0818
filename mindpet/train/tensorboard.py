"""What a run has done, as TensorBoard shows it: a copy of the run folder's log."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindpet.utils.exceptions import InputError

__all__ = ["require_tensorboard", "write_scalars"]

_STEP_SCALARS = ("loss", "learning_rate")


def require_tensorboard() -> None:
    """Refuse to go on where tensorboardX, which writes the files, is not installed.

    Raises:
        InputError: It is not.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "report_to: tensorboard needs the package tensorboardX, which is not installed; install it by `pip install "
            "tensorboardX`, or leave report_to out"
        )


@contextmanager
def write_scalars(
    folder: Path, earlier: Iterable[Mapping[str, Any]] = ()
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give a function that writes loss, learning rate or validation metric of an entry of the log, by its step.

    Args:
        folder: What `tensorboard --logdir` is to be given; empty or not there yet.
        earlier: The entries of the log so far, when a run is resumed; they are written first, so that each step is
            there once.
    """
    from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

    with SummaryWriter(str(folder)) as writer:

        def write(entry: Mapping[str, Any]) -> None:
            for name, value in entry.items():
                if name in _STEP_SCALARS or name.startswith("valid_"):
                    writer.add_scalar(name, value, entry["step"])

        for entry in earlier:
            write(entry)
        yield write
