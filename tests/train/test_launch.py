import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mindpet.train import launch as module
from mindpet.train.launch import launch
from mindpet.utils.exceptions import RankError

# What each process does first: tell which one it is, and where.
BEGIN = """
import os, signal, sys, time
role, rank = os.environ["MS_ROLE"], os.environ.get("RANK_ID", "-")
open(os.path.join(sys.argv[1], f"{role}{rank}"), "w").write(str(os.getpid()))
if role == "MS_SCHED":
    time.sleep(600)
while len(os.listdir(sys.argv[1])) < 3:
    time.sleep(0.01)
"""


def _command(folder, what):
    return [sys.executable, "-c", BEGIN + what, str(folder)]


def _pids(folder):
    return [int(file.read_text()) for file in folder.iterdir()]


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _assert_all_ended(folder):
    assert len(_pids(folder)) == 3
    assert not [pid for pid in _pids(folder) if _runs(pid)]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_code_with_which_all_ranks_end_is_that_of_the_job(tmp_path, code):
    assert launch(_command(tmp_path, f"sys.exit({code})"), 2) == code
    assert {file.name for file in tmp_path.iterdir()} == {"MS_SCHED-", "MS_WORKER0", "MS_WORKER1"}
    _assert_all_ended(tmp_path)


def test_the_processes_are_told_how_to_find_each_other(tmp_path, capfd):
    names = ("MS_WORKER_NUM", "MS_SCHED_HOST", "MS_NODE_ID", "RANK_ID", "RANK_SIZE", "DEVICE_ID")
    what = f"print(*(os.environ[name] for name in {names}), os.environ['MS_SCHED_PORT'].isdigit())"
    assert launch(_command(tmp_path, what), 2) == 0
    assert capfd.readouterr().out == "2 127.0.0.1 0 0 2 0 True\n", "only the first rank prints"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"rank 1 was killed by SIGKILL.*memory.*--resume"),
        ("sys.exit('out of order')", r"(?s)rank 1 ended with exit code 1.*--resume.*lines of rank 1:\nout of order"),
        ("raise RuntimeError('boom')", r"(?s)rank 1 ended with exit code 1.*RuntimeError: boom"),
    ],
)
def test_a_rank_that_ends_before_its_time_ends_the_job(monkeypatch, tmp_path, what, said):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    script = f"""
if rank == "1":
    {what}
time.sleep(600)
"""
    begin = time.monotonic()
    with pytest.raises(RankError, match=said):
        launch(_command(tmp_path, script), 2)
    assert time.monotonic() - begin < 20
    _assert_all_ended(tmp_path)


def test_a_scheduler_that_fails_ends_the_job(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    command = _command(tmp_path, "time.sleep(600)")
    command[2] = command[2].replace("time.sleep(600)", "sys.exit('no port')", 1)
    with pytest.raises(RankError, match=r"(?s)scheduler ended with exit code 1.*no port"):
        launch(command, 2)
    _assert_all_ended(tmp_path)


def _send_when_all_run(folder, number, *pids):
    def send():
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_all_ranks_to_stop(tmp_path, number):
    script = """
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5 if rank == "0" else 0), sys.exit(1)))
time.sleep(600)
"""
    thread = _send_when_all_run(tmp_path, number)
    assert launch(_command(tmp_path, script), 2) == 1
    thread.join()
    _assert_all_ended(tmp_path)


def test_sigterm_to_every_process_of_the_job_stops_it_orderly(tmp_path):
    begin = """
from mindpet.train.interrupt import catch_stop_signals
from mindpet.train.launch import follow_the_launcher
follow_the_launcher()
"""
    script = """
with catch_stop_signals() as stop:
    while not stop.requested:
        time.sleep(0.01)
time.sleep(0.5)
sys.exit(1)
"""
    command = _command(tmp_path, script)
    command[2] = begin + command[2]

    def send():
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        time.sleep(0.5)
        for pid in [*_pids(tmp_path), os.getpid()]:
            os.kill(pid, signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    assert launch(command, 2) == 1
    thread.join()
    _assert_all_ended(tmp_path)


def test_a_signal_before_the_ranks_can_stop_orderly_is_an_interruption(tmp_path):
    thread = _send_when_all_run(tmp_path, signal.SIGINT)
    with pytest.raises(RankError, match="interrupted; --resume"):
        launch(_command(tmp_path, "time.sleep(600)"), 2)
    thread.join()
    _assert_all_ended(tmp_path)


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
    follow = "from mindpet.train.launch import follow_the_launcher; follow_the_launcher()\n"
    command = _command(tmp_path, "time.sleep(600)")
    command[2] = follow + command[2]
    # A process that keeps Python's lock ends too, as MindSpore's scheduler does.
    command[2] = command[2].replace("time.sleep(600)", "import ctypes; ctypes.PyDLL(None).sleep(600)")
    script = f"from mindpet.train.launch import launch; launch({command!r}, 2)"
    with subprocess.Popen([sys.executable, "-c", script]) as launcher:
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        launcher.kill()
    deadline = time.monotonic() + 10
    while any(map(_runs, _pids(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.05)
    _assert_all_ended(tmp_path)
