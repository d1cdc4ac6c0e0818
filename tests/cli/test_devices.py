"""Fine-tuning in two processes that share each batch; slow, as every run starts MindSpore three times."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpet.train import launch
from mindpet.train.record import TIMES
from tests.scale import FULL, rarely
from tests.tiny import write_bert, write_task

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-m", "mindpet.cli"]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Arguments that fine-tune a tiny BERT on a tiny task: in the last batch of an epoch a rank has fillers only.

    Its texts are equally long, as compiling a second graph takes longer than all else that a process of a run does.
    """
    folder = tmp_path_factory.mktemp("task")
    files = ["--model", write_bert(folder / "model"), "--data", write_task(folder / "task.jsonl", count=96)]
    rates = ["--learning-rate", "0.02", "--head-learning-rate", "0.05"]
    return ["finetune", *map(str, files), "--batch-size", "8", "--no-baselines", *rates]


@pytest.fixture(scope="module")
def task_of_two_lengths(task, tmp_path_factory):
    """The arguments of `task`, but with texts of which every fourth is longer."""
    data = write_task(tmp_path_factory.mktemp("longer") / "task.jsonl", count=100)
    texts = [json.loads(line) for line in data.read_text().splitlines()]
    for number, text in enumerate(texts):
        text["text"] += " the day a film very the" * (number % 4 == 0)
    data.write_text("\n".join(map(json.dumps, texts)))
    return [*task, "--data", str(data)]


def _run(arguments, **more):
    """Run the program to its end."""
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, **more)


def _entries(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def _without_times(folder):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in _entries(folder)]


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def _ranks(out):
    """Return the process numbers, by rank, of the processes that work on a run; the scheduler's is at -1."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(out).encode() in (process / "cmdline").read_bytes():
                variables = dict(
                    entry.partition(b"=")[::2] for entry in (process / "environ").read_bytes().split(b"\0")
                )
                if b"MS_ROLE" in variables:
                    found[int(variables.get(b"RANK_ID", b"-1"))] = int(process.name)
        except OSError:
            continue
    return found


def _wait_for_steps(out, steps, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text().splitlines()) > steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {steps} steps came: {process.communicate()}")


def _start(arguments):
    return subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# With the task's own rates the losses of this tiny network are chaotic: roundings of float16 grow to 3, and a gradient
# at the edge of float16 overflows in one of two halves of a batch and not in the whole.
CALM = ["--learning-rate", "0.003", "--head-learning-rate", "0.003"]
# From each kind of run to its task, its flags and how far the losses of one process and of two may be apart.
RUNS = {
    "lora with dropout": (
        "task_of_two_lengths",
        ["--baselines", "--lora-dropout", "0.1", "--dropout", "0.1", "--learning-rate", "0.002"],
        1e-4,
    ),
    "full": ("task_of_two_lengths", ["--method", "full"], 1e-4),
    "bitfit": ("task_of_two_lengths", ["--method", "bitfit"], 1e-4),
    "float16": ("task", ["--dtype", "float16", *CALM], 2e-3),
}


@pytest.fixture(scope="module")
def one_and_two(request, tmp_path_factory):
    """What a run of the kind `request.param` has left in one process and in two, and how far they may be apart."""
    task, flags, tolerance = RUNS[request.param]
    folders = []
    for devices in (1, 2):
        out = tmp_path_factory.mktemp("runs") / str(devices)
        result = _run([*request.getfixturevalue(task), *flags, "--epochs", 6, "--out", out, "--devices", devices])
        assert result.returncode == 0, result.stderr
        folders.append(out)
    assert "BERT tuned with" in result.stdout
    assert "[INFO]" not in result.stderr and "[WARNING]" not in result.stderr
    return *folders, tolerance


@pytest.mark.parametrize(
    "one_and_two",
    [pytest.param(kind, marks=rarely if kind in ("full", "bitfit") else []) for kind in RUNS],
    indirect=True,
)
def test_two_processes_with_half_the_batch_follow_one_with_the_whole(one_and_two):
    one, two, tolerance = one_and_two
    steps, others = ([entry for entry in _entries(folder) if "loss" in entry] for folder in (one, two))
    assert len(steps) == len(others) >= 50
    assert min(entry["texts"] for entry in steps) <= 4, "in some batches the second rank has fillers only"
    np.testing.assert_allclose(
        [entry["loss"] for entry in others], [entry["loss"] for entry in steps], atol=tolerance, rtol=0
    )
    for name in ("texts", "skipped", "loss_scale", "learning_rate"):
        assert [entry[name] for entry in others] == [entry[name] for entry in steps]
    for name in ("accuracy", "valid_accuracy", "trainable_params", "padding_share"):
        assert _metrics(one)[name] == _metrics(two)[name]


@pytest.mark.parametrize("one_and_two", ["lora with dropout"], indirect=True)
def test_baselines_are_those_of_one_process(one_and_two):
    names = ("baseline_accuracy", "probe_accuracy")
    one, two = ([_metrics(folder)[name] for name in names] for folder in one_and_two[:2])
    assert one == two
    assert None not in one


@pytest.mark.parametrize("one_and_two", ["lora with dropout"], indirect=True)
def test_another_number_of_devices_is_refused_when_a_run_is_resumed(one_and_two):
    out = one_and_two[0]
    result = _run(["finetune", "--out", out, "--resume", "--devices", 2])
    assert result.returncode == 2
    assert "devices: 2 was given, but the run in" in result.stderr


@pytest.fixture(scope="module")
def long_run(task):
    return [*task, "--lora-dropout", "0.1", "--epochs", "24", "--devices", "2"]


@pytest.fixture(scope="module")
def never_stopped(long_run, tmp_path_factory):
    """What the long run leaves when nobody stops it."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    result = _run([*long_run, "--out", out])
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGINT, False), pytest.param(signal.SIGTERM, False, marks=rarely), (signal.SIGTERM, True)],
    ids=["SIGINT", "SIGTERM", "SIGTERM to all processes"],
)
def test_a_stopped_run_saves_once_and_goes_on_as_if_it_had_not_been_stopped(
    tmp_path, long_run, never_stopped, number, to_all
):
    parts = tmp_path / "parts"
    with _start([*long_run, "--out", parts]) as process:
        _wait_for_steps(parts, 12, process)
        for pid in [process.pid, *(_ranks(parts).values() if to_all else ())]:
            os.kill(pid, number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1, said
    assert len(re.findall("ended early; last checkpoint: .*--resume goes on", said)) == 1
    assert "Traceback" not in said
    assert not _ranks(parts)
    assert (parts / "resume.safetensors").exists() and not (parts / "metrics.json").exists()
    result = _run(["finetune", "--out", parts, "--resume"])
    assert result.returncode == 0, result.stderr
    assert _without_times(never_stopped) == _without_times(parts)
    values, others = (load_file(folder / "resume.safetensors") for folder in (never_stopped, parts))
    assert values.keys() == others.keys()
    for name in values:
        np.testing.assert_array_equal(values[name], others[name], err_msg=name)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=rarely), 1])
def test_a_rank_that_is_killed_ends_the_job_within_a_minute(tmp_path, task, rank):
    out = tmp_path / "run"
    with _start([*task, "--epochs", 100000, "--save-steps", 5, "--out", out, "--devices", 2]) as process:
        _wait_for_steps(out, 20, process)
        assert sorted(_ranks(out)) == [-1, 0, 1]
        begin = time.monotonic()
        os.kill(_ranks(out)[rank], signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
        took = time.monotonic() - begin
    assert process.returncode == 1
    assert re.search(rf"mindpet: rank {rank} was killed by SIGKILL.*--resume", said)
    assert took < 60
    assert not _ranks(out)


def test_no_rank_outlives_the_command(tmp_path, task):
    out = tmp_path / "run"
    with _start([*task, "--epochs", 100000, "--out", out, "--devices", 2]) as process:
        _wait_for_steps(out, 20, process)
        process.kill()
        process.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while _ranks(out) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _ranks(out)


# Runs in each Python before anything else: rank 1 comes upon an error of its own, and the launcher waits for rank 0,
# which waits for rank 1, no longer than `patience`.
BREAK = """
import os
if os.environ.get("MS_ROLE") is None:
    from mindpet.train import launch
    launch._PATIENCE = {patience}
elif os.environ.get("RANK_ID") == "1":
    from mindpet.data.batches import Batches
    from mindpet.utils.exceptions import InputError
    def fail(self, *arguments):
        {what}
    Batches.{method} = fail
"""


@pytest.mark.parametrize(
    ("method", "what", "said"),
    [
        ("__init__", "raise InputError('rank 1 reads nothing')", "mindpet: rank 1 reads nothing"),
        pytest.param(
            *("epoch", "raise RuntimeError('rank 1 is out of order')", "RuntimeError: rank 1 is out of order"),
            marks=rarely,
        ),
        ("_make", "os._exit(7)", "saved last$"),
    ],
    ids=["at the start", "in training", "without a word"],
)
def test_a_rank_that_fails_alone_ends_the_job_within_a_minute(tmp_path, task, method, what, said):
    (tmp_path / "site").mkdir()
    patience = launch._PATIENCE if FULL else 4.0
    (tmp_path / "site" / "sitecustomize.py").write_text(BREAK.format(method=method, what=what, patience=patience))
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "run"
    begin = time.monotonic()
    result = _run([*task, "--out", out, "--devices", 2], env=os.environ | {"PYTHONPATH": path})
    assert result.returncode == 1
    assert re.search(rf"(?s)mindpet: rank 1 ended with exit code \d, so the other.*{said}", result.stderr)
    assert time.monotonic() - begin < 60
    assert not _ranks(out)


def test_divergence_is_said_once_and_gives_exit_code_1(tmp_path, task):
    flags = ["--method", "full", "--learning-rate", "1e30", "--devices", "2"]
    result = _run([*task, *flags, "--out", tmp_path / "run"])
    assert result.returncode == 1
    assert len(re.findall("mindpet: step .* lower the learning rates", result.stderr)) == 1
    assert "rank" not in result.stderr


def test_bad_input_is_said_once_and_gives_exit_code_2(tmp_path, task):
    model = shutil.copytree(task[task.index("--model") + 1], tmp_path / "model")
    (model / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    result = _run([*task, "--model", model, "--out", tmp_path / "run", "--devices", 2])
    assert result.returncode == 2
    assert len([line for line in result.stderr.splitlines() if line.startswith("mindpet: ")]) == 1
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_the_same_command_runs_under_msrun(tmp_path, task):
    out = tmp_path / "run"
    msrun = [str(Path(sys.executable).with_name("msrun")), "--worker_num", "2", "--local_worker_num", "2"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    msrun += ["--join", "True", "--master_port", port, "--log_dir", str(tmp_path / "logs")]
    command = [*msrun, str(Path(sys.executable).with_name("mindpet")), *task, "--epochs", "1", "--out", str(out)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PATH": path})
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("BERT tuned with lora") == 1
    assert _metrics(out)["accuracy"] > 0
    assert "devices: 2" in (out / "settings.yaml").read_text()
