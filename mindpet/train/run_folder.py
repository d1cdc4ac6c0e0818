"""The folder that a run writes: settings, labels, log, plot, checkpoints, a state to resume from, adapter and metrics.

`settings.yaml` is written first and never removed, so that at any moment the folder is known to be a run's.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from mindpet.graph import newest_whole
from mindpet.graph.checkpoint_names import checksum_path, find_checkpoints
from mindpet.storage.atomic import make_folder, remove_file, write_bytes, write_json, write_text
from mindpet.storage.reader import read_text
from mindpet.train.record import StepRecord
from mindpet.train.settings import SETTINGS_FILE
from mindpet.train.task import Metric
from mindpet.utils.exceptions import InputError

__all__ = ["CHECKPOINTS_KEPT", "RunFolder"]

CHECKPOINTS_KEPT = 2

_PREFIX = "DELTA_CKP"  # of the checkpoints, as TrainableParamsCheckPoint names them
_STEP = {field.name for field in fields(StepRecord)}
_UNFINISHED = (".*.tmp", ".adapter-staging-*", ".adapter-replaced-*")  # what a killed process leaves while it writes


class RunFolder:
    """A run folder at `path`; nothing is created, changed or removed by making this object.

    Args:
        path: Where the folder is to stand.
        overwrite: Whether an earlier run there may be replaced.
        resume: Whether an earlier run there may be continued.

    Raises:
        InputError: The folder exists and neither is on, is no run folder, or cannot be written; both are on; or what is
            to be resumed is finished and its state removed.
    """

    def __init__(self, path: Path, overwrite: bool, resume: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self.settings = self.path / SETTINGS_FILE
        self.checkpoints = self.path / "checkpoints"
        self.adapter = self.path / "adapter"
        self.state = self.path / "resume.safetensors"
        self.plot = self.path / "loss.png"
        self.metrics = self.path / "metrics.json"
        self._log = self.path / "log.jsonl"
        self._labels = self.path / "labels.json"
        self.scalars = self.path / "tensorboard"
        files = (self.settings, self.state, self.plot, self.metrics, self._log, self._labels)
        self._written = {*files, self.checkpoints, self.adapter, self.scalars}
        if overwrite and resume:
            raise InputError("overwrite and resume: both were given; resume goes on with the run, overwrite removes it")
        try:
            self._check_earlier(path, overwrite, resume)
            self._check_writable(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}; choose another with --out") from error

    def create(self, settings: Mapping[str, Any], label_names: Sequence[str]) -> None:
        """Make the folder, in place of an earlier run's, and write the resolved `settings` and the labels, if any.

        Raises:
            InputError: It cannot be made.
        """
        try:
            make_folder(self.path)
            self._clear()
        except (OSError, InputError) as error:
            raise InputError(f"{self.path}: cannot be made ({error}); choose another with --out") from error
        self._write_settings(settings)
        if label_names:
            write_json(self._labels, list(label_names))
        make_folder(self.checkpoints)

    def reopen(self, settings: Mapping[str, Any], log_lines: int) -> list[dict[str, Any]]:
        """Make the folder what it was when a state was saved, and return the entries of the log up to there.

        Of the checkpoints, only the newest ones stay; a run that goes on numbers its own anew.

        Args:
            settings: The resolved settings; the places of model and data may be new ones.
            log_lines: How long the log was.

        Raises:
            InputError: The log is shorter, or does not hold what a run writes.
        """
        lines = read_text(self._log).splitlines()[:log_lines]
        if len(lines) < log_lines:
            raise InputError(
                f"{self._log}: {len(lines)} lines, but {self.state.name} was saved after {log_lines}; restore the log, "
                "or start again with --overwrite"
            )
        entries = [self._parse(line, number) for number, line in enumerate(lines, start=1)]
        for leftover in filter(_is_unfinished, self.path.iterdir()):
            _remove(leftover)
        if self.scalars.exists():  # a copy of the log, which is written anew
            _remove(self.scalars)
        self._write_settings(settings)
        write_text(self._log, "".join(f"{line}\n" for line in lines))
        for checkpoint in find_checkpoints(self.checkpoints, _PREFIX)[:-CHECKPOINTS_KEPT]:
            remove_file(checkpoint)
            remove_file(checksum_path(checkpoint))
        return entries

    def newest_checkpoint(self) -> str | None:
        """Return the path of the newest whole checkpoint, or None when there is none."""
        newest = newest_whole(self.checkpoints, _PREFIX)
        return None if newest is None else str(newest)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`.

        Raises:
            InputError: It cannot be written.
        """
        try:
            with self._log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"{self._log} cannot be written ({error.strerror or error}); free space first") from error

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`."""
        write_json(self.metrics, dict(metrics))

    def draw_losses(self, losses: Sequence[float], metric: Metric, measured: Mapping[int, float]) -> None:
        """Draw the loss of each step and the validation metric, by the step after which it was measured.

        Raises:
            InputError: The plot cannot be written.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left = figure.subplots()
        left.plot(range(1, len(losses) + 1), losses, color="tab:blue", linewidth=1)
        left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        right = left.twinx()
        right.plot(list(measured), list(measured.values()), color="tab:orange", marker="o")
        right.set(ylabel=f"validation {metric.name}", ylim=(0, metric.highest))
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120, format="png")
        write_bytes(self.plot, picture.getvalue())

    def sync_log(self) -> None:
        """Wait until the log's lines are on the disk."""
        with self._log.open("a", encoding="utf-8") as lines:
            os.fsync(lines.fileno())

    def _check_earlier(self, given: Path, overwrite: bool, resume: bool) -> None:
        """Refuse a folder that holds something which is neither to be replaced nor to be continued."""
        if not self.path.exists() or (self.path.is_dir() and not self._entries()):
            return
        is_run, is_finished = self.settings.is_file(), self.metrics.is_file()
        if not overwrite and not resume:
            hint = ", go on with the run there by --resume," if is_run and not is_finished else ""
            raise InputError(f"{given}: the run folder exists; choose another with --out{hint} or pass --overwrite")
        if not is_run:
            what = "not resumed" if resume else "not replaced"
            raise InputError(f"{given}: {what}, as it is no earlier run (it has no {self.settings.name})")
        foreign = sorted(entry.name for entry in self._entries() if entry not in self._written)
        if overwrite and foreign:
            raise InputError(
                f"{given}: not replaced, as it holds {foreign[0]!r}, which no run writes; move that away, or choose "
                "another with --out"
            )
        if resume and is_finished and not self.state.is_file():
            raise InputError(
                f"{given}: the run is finished and its {self.state.name} was removed; its figures are in "
                f"{self.metrics.name}, and --overwrite starts it again"
            )

    def _entries(self) -> list[Path]:
        """Return what lies in the folder, but for what a killed process has left unfinished."""
        return [entry for entry in self.path.iterdir() if not _is_unfinished(entry)]

    def _clear(self) -> None:
        """Remove what a run writes but for the settings; the state first, as it is worthless without the rest."""
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry != self.state):
            if entry != self.settings:
                _remove(entry)

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        write_text(self.settings, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        """Return the entry in a line of the log."""
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not (entry.keys() == _STEP or _is_epoch(entry)):
            raise InputError(
                f"{self._log}, line {number}: neither a step nor an epoch; restore the log, or start again with "
                "--overwrite"
            )
        return entry

    def _check_writable(self, given: Path) -> None:
        """Refuse a path at which no folder can be made."""
        above = self.path
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise InputError(f"{given}: {above} is no folder; choose another with --out")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{given}: {above} cannot be written; choose another with --out")


def _is_epoch(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of the log has epoch, step and one metric."""
    others = entry.keys() - {"epoch", "step"}
    return len(entry) == 3 and len(others) == 1 and others.pop().startswith("valid_")


def _is_unfinished(entry: Path) -> bool:
    return any(map(entry.match, _UNFINISHED))


def _remove(entry: Path) -> None:
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except OSError as error:
        raise InputError(f"{entry} cannot be removed ({error.strerror or error}); check its folder's rights") from error
