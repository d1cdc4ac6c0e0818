"""Checkpoints of what fine-tuning changes."""

import os
from pathlib import Path
from typing import Any

from mindspore.train import CheckpointConfig, RunContext

from mindpet.graph.staged_checkpoint import StagedCheckpoint
from mindpet.utils.exceptions import AbsolutePathError, InputError, LinkPathError

__all__ = ["TrainableParamsCheckPoint"]


class TrainableParamsCheckPoint(StagedCheckpoint):
    """A MindSpore ModelCheckpoint that writes only the network's trainable parameters, heads included.

    The files are `<prefix>-<epoch>_<step in epoch>.ckpt`, or `<prefix>_1-...` for the second run in one folder and so
    on; MindSpore's `load_checkpoint` reads them. Optimizer state, loss scale and the graph are not written. Beside each
    stands `<file>.sha256.json` with the checksums that `load_trainable` checks. There is never a moment without a whole
    checkpoint once the first is finished: a new one is on the disk before an old one is removed.

    It works as a callback of `Model.train` and `Model.fit`, and in a loop of one's own that calls `step_end` and `end`
    with a RunContext whose arguments have the attributes `train_network`, `cur_step_num` (from 1, over all epochs),
    `cur_epoch_num` and `batch_num` (steps in an epoch).

    Args:
        directory: An absolute folder without a symbolic link in its path; it is made where it is missing. Processes of
            a distributed training need a folder each.
        prefix: Begin of the file names.
        config: When to save and what to keep, by default MindSpore's `CheckpointConfig()`. `async_save=True` writes a
            copy of the parameters in a thread.

    Raises:
        TypeError: `config` is no CheckpointConfig, or `directory` no path.
        ValueError: `directory` is None or empty, `prefix` is no file name, or `config` asks for what cannot be kept
            safe; the message says why.
        LinkPathError: `directory`, or a folder above it, is a symbolic link.
        AbsolutePathError: `directory` is relative.
        InputError: `directory` cannot be made.
    """

    def __init__(
        self, directory: str | os.PathLike[str], prefix: str = "DELTA_CKP", config: CheckpointConfig | None = None
    ):
        folder = _check_directory(directory)
        _check_prefix(prefix)
        config = CheckpointConfig() if config is None else config
        _check_config(config)
        super().__init__(folder, prefix, config)

    def on_eval_begin(self, run_context: RunContext) -> None:
        """Do nothing: evaluation changes no parameter."""

    def on_eval_step_end(self, run_context: RunContext) -> None:
        """Do nothing: evaluation changes no parameter."""

    def on_eval_end(self, run_context: RunContext) -> None:
        """Do nothing: evaluation changes no parameter."""


def _check_directory(directory: Any) -> Path:
    if directory is None or directory == "":
        raise ValueError(f"directory is {directory!r}; give an absolute path.")
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(f"directory is a {type(directory).__name__}; give an absolute path as a string.")
    folder = Path(directory)
    try:
        link = next((part for part in (folder, *folder.parents) if part.is_symlink()), None)
    except OSError as error:
        raise InputError(f"{folder} cannot be reached ({error.strerror or error}); give another folder.") from error
    if link is not None:
        raise LinkPathError(f"directory is {folder}, and {link} is a symbolic link; give the path that it leads to.")
    if not folder.is_absolute():
        raise AbsolutePathError(f"directory is the relative path {folder}; give an absolute path.")
    return folder


def _check_prefix(prefix: Any) -> None:
    if not isinstance(prefix, str) or not prefix or "/" in prefix or os.sep in prefix:
        raise ValueError(f"prefix is {prefix!r}; give the begin of a file name, without a slash.")


def _check_config(config: Any) -> None:
    if not isinstance(config, CheckpointConfig):
        raise TypeError(f"config is a {type(config).__name__}; give a mindspore.train.CheckpointConfig.")
    reason = _find_unsafe_settings(config)
    if reason:
        raise ValueError(f"This CheckpointConfig cannot be kept safe: {reason}.")


def _find_unsafe_settings(config: CheckpointConfig) -> str:
    """Return why a configuration cannot be followed without ever risking a checkpoint, or '' if it can."""
    if not config.save_checkpoint_steps and not config.save_checkpoint_seconds:
        return "without save_checkpoint_steps and save_checkpoint_seconds nothing would ever be saved; give one of them"
    if config.async_save == "process":
        return (
            "async_save='process' writes in a forked process, whose end cannot be awaited before old checkpoints are"
            " removed; use async_save=True, which writes in a thread"
        )
    if config.exception_save:
        return (
            "exception_save makes MindSpore itself write all parameters straight to the final name; the last"
            " checkpoint is kept without it"
        )
    if config.remove_redundancy:
        return "remove_redundancy spreads a checkpoint over the files of several processes, none of which is whole"
    if config.map_param_inc:
        return "incremental files are useless without the earlier ones, which are removed; leave out incremental"
    if config.crc_check and config.enc_key is not None:
        return "MindSpore cannot read back an encrypted file with a CRC; leave out crc_check, checksums stand beside it"
    if config.format != "ckpt":
        return f"the files are .ckpt files; format={config.format!r} cannot be kept"
    return ""
