"""Ctrl-C and SIGTERM end a run after the step at hand instead of in the middle of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "catch_stop_signals"]


class StopRequest:
    """Tells whether the run was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts as it would have without us.

    Outside the main thread, where Python allows no signal handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.requested = True
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
