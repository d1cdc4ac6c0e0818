"""A ModelCheckpoint that never leaves its folder without a whole checkpoint.

A save takes these steps, each on the disk before the next begins: MindSpore writes the new checkpoint into a staging
folder; its checksums get their name; the checkpoint gets its name; the checkpoints that are now too many lose theirs,
then their checksums. So every checkpoint under its final name is whole and has its checksums beside it, and whenever
the process or the machine stops, the last one that was finished is there.
"""

import copy
import shutil
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from mindspore import Generator, Parameter, nn, save_checkpoint
from mindspore.train import CheckpointConfig, ModelCheckpoint, RunContext

from mindpet.graph.checkpoint_names import checksum_path, find_stray_checksums, free_prefix
from mindpet.graph.parameters import trainable_parameters
from mindpet.graph.write import publish_checkpoint, staging_prefix
from mindpet.storage.atomic import make_folder, remove_file
from mindpet.utils.exceptions import InputError

__all__ = ["StagedCheckpoint"]


class _Saved(NamedTuple):
    path: Path
    time: float


class StagedCheckpoint(ModelCheckpoint):
    """Saves the trainable parameters by the steps above, when and as a CheckpointConfig says.

    The callbacks `step_end` and `end` stand here and not in the class that users name, because `Model.fit` refuses a
    class that defines them itself.

    Args:
        folder: An absolute folder; it is made where it is missing. Every process needs one of its own.
        prefix: Begin of the file names.
        config: When to save, what to keep and how to write.
    """

    def __init__(self, folder: Path, prefix: str, config: CheckpointConfig):
        make_folder(folder)
        super().__init__(prefix=prefix, directory=str(folder), config=config)
        self._folder = folder
        self._first_prefix = prefix
        self._settings = config
        self._latest_path: Path | None = None
        self._writer = ThreadPoolExecutor(max_workers=1) if config.async_save else None
        self._writing: Future[None] | None = None
        self._start_run()
        _remove_leftovers(folder, prefix)

    @property
    def latest_ckpt_file_name(self) -> str:
        """The path of the checkpoint that was finished last, or '' before the first."""
        return str(self._latest_path or "")

    def begin(self, run_context: RunContext) -> None:
        """Check before training that there is something to save; a second training is a run of its own.

        Raises:
            InputError: Nothing is trainable, or two parameters share a name.
        """
        trainable_parameters(self._network(run_context.original_args()))
        if self._run_prefix:
            self._start_run()

    def step_end(self, run_context: RunContext) -> None:
        """Save if the configuration asks for it after this step.

        Raises:
            InputError: The file cannot be written, nothing is trainable, or two parameters share a name. The earlier
                checkpoints are untouched.
        """
        cb_params = run_context.original_args()
        if cb_params.cur_step_num < self._saved_step:
            self._start_run()
        if self._is_due(cb_params.cur_step_num):
            self._save(cb_params)

    def end(self, run_context: RunContext) -> None:
        """Save the last step unless it is saved already, and wait until everything is written.

        Raises:
            InputError: As `step_end`.
        """
        cb_params = run_context.original_args()
        if cb_params.cur_step_num != self._saved_step:
            self._save(cb_params)
        self._wait()

    def _start_run(self) -> None:
        self._wait()
        self._run_prefix = ""
        self._kept: list[_Saved] = []
        self._saved_step = 0
        self._saved_time = time.monotonic()

    def _network(self, cb_params: Any) -> nn.Cell:
        saved_network = self._settings.saved_network
        return cb_params.train_network if saved_network is None else saved_network

    def _is_due(self, step: int) -> bool:
        if step == self._saved_step:
            return False
        if self._settings.save_checkpoint_steps:
            return step >= self._saved_step + self._settings.save_checkpoint_steps
        return time.monotonic() - self._saved_time > self._settings.save_checkpoint_seconds

    def _save(self, cb_params: Any) -> None:
        self._wait()
        network = self._network(cb_params)
        parameters = trainable_parameters(network)
        appended = _append(self._settings.append_dict or {}, cb_params)
        target = self._choose_target(cb_params)
        if self._writer is None:
            self._write(network, set(parameters), appended, target)
        else:
            snapshot = _copy_parameters(parameters)
            self._writing = self._writer.submit(self._write, snapshot, set(parameters), appended, target)
        self._saved_step = cb_params.cur_step_num
        self._saved_time = time.monotonic()

    def _choose_target(self, cb_params: Any) -> Path:
        step_in_epoch = (cb_params.cur_step_num - 1) % cb_params.batch_num + 1
        name = f"{cb_params.cur_epoch_num}_{step_in_epoch}.ckpt"
        if not self._run_prefix or (self._folder / f"{self._run_prefix}-{name}").exists():
            self._run_prefix = free_prefix(self._folder, self._first_prefix)
        return self._folder / f"{self._run_prefix}-{name}"

    def _write(
        self, source: nn.Cell | list[Parameter], names: set[str], appended: dict[str, Any], target: Path
    ) -> None:
        publish_checkpoint(
            target,
            self._first_prefix,
            lambda staged: self._write_staged(source, names, appended, staged),
            appended,
            self._settings.enc_key,
            self._settings.enc_mode,
        )
        self._latest_path = target
        self._kept.append(_Saved(target, time.monotonic()))
        self._remove_superfluous()

    def _write_staged(
        self, source: nn.Cell | list[Parameter], names: set[str], appended: dict[str, Any], staged: Path
    ) -> None:
        settings = self._settings
        save_checkpoint(
            source,
            str(staged),
            integrated_save=settings.integrated_save,
            append_dict=appended,
            enc_key=settings.enc_key,
            enc_mode=settings.enc_mode,
            choice_func=names.__contains__,
            crc_check=settings.crc_check,
        )

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _remove_superfluous(self) -> None:
        for saved in self._find_superfluous():
            try:
                remove_file(saved.path)
                checksum_path(saved.path).unlink(missing_ok=True)
                self._kept.remove(saved)
            except (InputError, OSError) as error:  # Training goes on; the next save tries again.
                warnings.warn(f"The old checkpoint stays: {error}", stacklevel=2)

    def _find_superfluous(self) -> list[_Saved]:
        if self._settings.keep_checkpoint_max:
            return self._kept[: -self._settings.keep_checkpoint_max]
        since = time.monotonic() - 60 * self._settings.keep_checkpoint_per_n_minutes
        recent = [saved for saved in self._kept[:-1] if saved.time > since]
        return recent[1:]


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove what a killed run with this prefix has left: staging folders and checksums without a checkpoint."""
    for path in folder.iterdir():
        if path.name.startswith(staging_prefix(prefix)):
            shutil.rmtree(path, ignore_errors=True)
    for path in find_stray_checksums(folder, prefix):
        path.unlink(missing_ok=True)


def _append(append_info: dict[str, Any], cb_params: Any) -> dict[str, Any]:
    """Return the values to append as they are now; epoch_num and step_num count on from the given start."""
    values = {name: _value_now(value) for name, value in append_info.items()}
    for name, count in (("epoch_num", cb_params.cur_epoch_num), ("step_num", cb_params.cur_step_num)):
        if name in values:
            values[name] += count
    return values


def _value_now(value: Any) -> Any:
    if isinstance(value, Generator):
        return value.get_state()
    return copy.deepcopy(value)


def _copy_parameters(parameters: dict[str, Parameter]) -> list[Parameter]:
    """Return copies that training does not change while they are written.

    Raises:
        ValueError: A parameter is sharded: only MindSpore's own saving can gather it.
    """
    sliced = [name for name, parameter in parameters.items() if parameter.sliced]
    if sliced:
        raise ValueError(
            f"async_save cannot be used with sharded parameters ({', '.join(sliced[:3])}): they are gathered while they"
            " are saved; use async_save=False."
        )
    return [copy.deepcopy(parameter) for parameter in parameters.values()]
