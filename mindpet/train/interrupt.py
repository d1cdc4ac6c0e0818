"""Ctrl-C and SIGTERM end a run after the step at hand instead of in the middle of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["LAUNCHED", "StopRequest", "catch_stop_signals"]

LAUNCHED = "MINDPET_LAUNCHED"  # set in the processes that `mindpet.train.launch` has started


class StopRequest:
    """Tells whether the run was asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts as it would have without us.

    Where all processes of a job are sent SIGTERM, as systemd and batch systems do, a launched one gets it from its
    launcher as well: there a second SIGTERM is ignored, and who wants an end at once tells the launcher.
    Outside the main thread, where Python allows no signal handlers, nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.requested = True
        if os.environ.get(LAUNCHED):
            before[signal.SIGTERM] = signal.SIG_IGN
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
