"""What a person sees while a network trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mindpet.train.record import StepRecord

__all__ = ["TrainingProgress", "announce"]


@contextmanager
def announce(console: Console, what: str) -> Iterator[None]:
    """Show `what` is going on; a spinner on a terminal, a line elsewhere."""
    if not console.is_terminal:
        console.print(what)
        yield
        return
    with console.status(what):
        yield


class TrainingProgress:
    """A bar with loss, the metric on the validation split, texts per second and the time left.

    Where the console is no terminal, one line an epoch is printed instead.

    Args:
        console: Where to draw.
        steps: Number of steps of the run.
        epochs: Number of epochs.
        metric: What is measured after each epoch.
        done: The steps that an earlier part of the run has done.
    """

    def __init__(self, console: Console, steps: int, epochs: int, metric: str, done: int = 0) -> None:
        self._console = console
        self._epochs = epochs
        self._metric = metric
        self._measured = "-"
        self._seconds = 0.0
        self._texts = 0
        self._loss = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[measured]}  {task.fields[speed]} texts/s"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training", total=steps, completed=done, loss="-", measured=f"{metric} -", speed="-"
        )

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def before_compile(self, shape: tuple[int, ...]) -> None:
        """Note that the step at hand takes longer, because its graph is compiled first."""
        note = f"compiling the graph ({shape[0]} x {shape[1]} tokens)"
        self._bar.update(self._task, description=note)
        if self._bar.disable:
            self._console.print(note)

    def after_step(self, record: StepRecord) -> None:
        """Show a finished step; the speed leaves out steps that compiled."""
        if not record.compiled:
            self._seconds += record.seconds
            self._texts += record.texts
        self._loss = record.loss if self._loss == 0.0 else 0.9 * self._loss + 0.1 * record.loss
        self._bar.update(
            self._task,
            advance=1,
            description=f"epoch {record.epoch}/{self._epochs}",
            loss=f"{self._loss:.3f}",
            measured=f"{self._metric} {self._measured}",
            speed=f"{self._texts / self._seconds:.0f}" if self._seconds else "-",
        )

    def after_epoch(self, epoch: int, measured: float) -> None:
        """Show the metric after an epoch."""
        self._measured = f"{measured:.3f}"
        self._bar.update(self._task, measured=f"{self._metric} {self._measured}")
        if self._bar.disable:
            speed = f"{self._texts / self._seconds:.0f} texts/s" if self._seconds else "no speed yet"
            self._console.print(
                f"epoch {epoch}/{self._epochs}: loss {self._loss:.3f}, validation {self._metric} {self._measured}, "
                f"{speed}"
            )
