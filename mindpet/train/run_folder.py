"""The folder that a run writes: settings, labels, a log of the steps, a plot, checkpoints and the closing metrics."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mindpet.storage.atomic import write_json, write_text
from mindpet.utils.exceptions import InputError

__all__ = ["RunFolder"]

_SETTINGS = "settings.yaml"


class RunFolder:
    """A run folder at `path`; nothing is created or removed before `create` is called.

    Args:
        path: Where the folder is to stand.
        overwrite: Whether an earlier run there may be replaced.

    Raises:
        InputError: The folder exists and `overwrite` is off, is no run folder, or cannot be written.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.path = Path(os.path.realpath(path))
        self.checkpoints = self.path / "checkpoints"
        self.plot = self.path / "loss.png"
        self.metrics = self.path / "metrics.json"
        self._log = self.path / "log.jsonl"
        if self._holds_something():
            if not overwrite:
                raise InputError(f"{path}: the run folder exists; choose another with --out or pass --overwrite")
            if not (self.path / _SETTINGS).is_file():
                raise InputError(f"{path}: not replaced, as it is no earlier run (it has no {_SETTINGS})")
        self._check_writable(path)

    def create(self, settings: Mapping[str, Any], label_names: Sequence[str]) -> None:
        """Make the folder, in place of an earlier run's, and write the resolved `settings` and the labels in order.

        Raises:
            InputError: It cannot be made.
        """
        try:
            if self._holds_something():
                shutil.rmtree(self.path)
            self.checkpoints.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be made ({error.strerror}); choose another with --out") from error
        write_json(self.path / "labels.json", list(label_names))
        write_text(self.path / _SETTINGS, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        with self._log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write `metrics.json`."""
        write_json(self.metrics, dict(metrics))

    def draw_losses(self, losses: Sequence[float], accuracies: Mapping[int, float]) -> None:
        """Draw the loss of each step and the validation accuracy, by the step after which it was taken."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        FigureCanvasAgg(figure)
        left = figure.subplots()
        left.plot(range(1, len(losses) + 1), losses, color="tab:blue", linewidth=1)
        left.set(xlabel="step", ylabel="training loss", ylim=(0, None))
        right = left.twinx()
        right.plot(list(accuracies), list(accuracies.values()), color="tab:orange", marker="o")
        right.set(ylabel="validation accuracy", ylim=(0, 1))
        figure.savefig(self.plot, dpi=120)

    def _holds_something(self) -> bool:
        """Tell whether something other than an empty folder stands at the path."""
        return self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir()))

    def _check_writable(self, given: Path) -> None:
        """Refuse a path at which no folder can be made."""
        above = self.path
        while not above.exists():
            above = above.parent
        if not above.is_dir():
            raise InputError(f"{given}: {above} is no folder; choose another with --out")
        if not os.access(above, os.W_OK | os.X_OK):
            raise InputError(f"{given}: {above} cannot be written; choose another with --out")
