"""One process for each device of this machine: started from one command, watched, and ended together.

MindSpore's own `msrun` does the same, but ends a job in the middle of a step when it is interrupted, and the ranks when
it is killed itself go on.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mindpet.train.interrupt import LAUNCHED, StopRequest, catch_stop_signals
from mindpet.utils.environment import usable_cores
from mindpet.utils.exceptions import RankError

__all__ = ["end_quietly", "follow_the_launcher", "launch"]

_POLL = 0.1  # seconds
_PATIENCE = 20.0  # seconds in which ranks that have met the same error as another one end by themselves
_LINES_SHOWN = 15


def launch(command: Sequence[str], devices: int) -> int:
    """Run a command in `devices` processes that find each other, and wait until all have ended.

    The first rank has this process's stdout and stderr. The first SIGINT or SIGTERM asks the ranks to stop after the
    step at hand; a second one ends them at once. When a rank ends before its time, the others are ended too; and so are
    all of them when this process is killed.

    Args:
        command: A program and its arguments; one more process runs it, only to bring the ranks together.
        devices: How many processes, each for one device.

    Returns:
        The exit code of the ranks.

    Raises:
        RankError: A rank was killed or has failed alone; the message says which one.
    """
    with catch_stop_signals() as stop, TemporaryDirectory(prefix="mindpet-") as logs:
        members: list[_Member] = []
        try:
            members.extend(_start(command, devices, Path(logs)))
            failed = _watch(members, stop)
            codes = {rank.code for rank in members[1:]}
            if failed and (failed.code < 0 or codes != {failed.code}):
                raise _explain(failed, stop)
            return failed.code if failed else 0
        finally:
            for member in members:
                member.end()


def follow_the_launcher() -> None:
    """Let this process, if `launch` has started it, end when the launcher does, however that ends.

    The kernel then sends SIGIO for the closed stdin, which ends a process even where MindSpore blocks all its threads.
    The process that brings the ranks together ignores SIGTERM, which may be sent to all processes of a job at once.
    """
    if os.environ.get(LAUNCHED):
        if os.environ["MS_ROLE"] == "MS_SCHED":  # the ranks' last step needs it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
        if select.select([0], [], [], 0)[0]:  # too late for the signal
            os._exit(1)


def end_quietly() -> None:
    """Close the stderr of a process that `launch` has started, at its very end.

    MindSpore's threads say farewell there when its log level has been forgotten already.
    """
    if os.environ.get(LAUNCHED):
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@dataclass(frozen=True)
class _Member:
    """A process of the job; `log` holds its output unless it prints itself."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def code(self) -> int:
        """The exit code; 0 while the process runs, below zero when a signal has ended it."""
        return self.process.poll() or 0

    def end(self) -> None:
        """Kill the process, if it runs, with everything that it has started, and wait for its end."""
        if self.is_running:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def last_lines(self) -> str:
        """Return the last lines of the output, below a heading."""
        if self.log is None:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
        return "\n".join([f"\nthe last lines of {self.name}:", *lines]) if lines else ""


def _start(command: Sequence[str], devices: int, logs: Path) -> Iterator[_Member]:
    """Start the process that brings the ranks together, then the ranks in their order."""
    environment = _environment(devices)
    yield _start_member("the scheduler", command, environment | {"MS_ROLE": "MS_SCHED"}, logs / "scheduler")
    for rank in range(devices):
        of_the_rank = {"MS_ROLE": "MS_WORKER", **dict.fromkeys(("MS_NODE_ID", "RANK_ID", "DEVICE_ID"), str(rank))}
        log = logs / f"rank_{rank}" if rank else None
        yield _start_member(f"rank {rank}", command, environment | of_the_rank, log)


def _start_member(name: str, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> _Member:
    """Start a process out of reach of the terminal's signals, which come by this process."""
    output = None if log is None else log.open("wb")
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
    )
    if output is not None:
        output.close()
    return _Member(name, process, log)


def _environment(devices: int) -> dict[str, str]:
    """Return the environment variables that all processes have: MindSpore's dynamic cluster, and quiet defaults."""
    defaults = {
        "GLOG_v": "3",  # MindSpore's errors, without its many warnings
        "OMP_NUM_THREADS": str(max(usable_cores() // devices, 1)),
    }
    cluster = {
        "MS_WORKER_NUM": str(devices),
        "MS_SCHED_HOST": "127.0.0.1",
        "MS_SCHED_PORT": str(_free_port()),
        "RANK_SIZE": str(devices),
        LAUNCHED: "1",
    }
    return defaults | dict(os.environ) | cluster


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _watch(members: Sequence[_Member], stop: StopRequest) -> _Member | None:
    """Wait until all ranks have ended; return the process that failed first, if one did."""
    ranks, told = members[1:], False
    failed: _Member | None = None
    while failed is None and any(rank.is_running for rank in ranks):
        time.sleep(_POLL)
        if stop.requested and not told:
            told = True
            for rank in ranks:
                rank.process.send_signal(signal.SIGTERM)
        failed = min((member for member in members if member.code), key=lambda member: member.code, default=None)
    deadline = time.monotonic() + _PATIENCE
    while failed and failed.code > 0 and any(rank.is_running for rank in ranks) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return failed


def _explain(failed: _Member, stop: StopRequest) -> RankError:
    """Say which process ended before its time, and what to do."""
    if stop.requested:
        return RankError("interrupted; --resume goes on where the run was saved last")
    if failed.code < 0:
        how = f"was killed by {signal.Signals(-failed.code).name}"
        advice = "see whether the memory suffices for all ranks, and "
    else:
        how, advice = f"ended with exit code {failed.code}", "see what it said, and "
    return RankError(
        f"{failed.name} {how}, so the other ranks were ended too; {advice}go on with --resume where the run was saved "
        f"last{failed.last_lines()}"
    )
