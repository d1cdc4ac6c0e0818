"""What all commands share: their help, exit codes, and where they write."""

import re
import resource
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from mindpet.cli.main import app
from tests.cli.runs import run_program, write_run

COMMANDS = ("finetune", "demo", "evaluate", "infer", "merge", "export", "inspect", "doctor")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    write_run(folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_an_example_that_can_be_read(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: mindpet {command}" in result.output


def test_no_help_imports_mindspore():
    code = (
        "import sys; from typer.testing import CliRunner; from mindpet.cli.main import app;"
        f"results = [CliRunner().invoke(app, [*one, '--help']) for one in ([], *([name] for name in {COMMANDS}))];"
        "sys.exit(any(result.exit_code for result in results) or 'mindspore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", ["infer", "inspect"])
def test_a_help_takes_less_than_half_a_second_of_the_processor(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "mindpet.cli", command, "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_results_go_to_stdout_and_all_else_to_stderr(home):
    command = [sys.executable, "-m", "mindpet.cli", "infer", str(home / "run")]
    result = subprocess.run(command, input=b"good day\n\nbad day", capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rb'(\{"text": .*\}\n){3}', result.stdout)
    assert b"applied from" in result.stderr


def test_a_reader_that_leaves_is_no_traceback(home):
    command = [sys.executable, "-m", "mindpet.cli", "inspect", str(home / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode in (0, 1)
    assert b"Traceback" not in said
    assert b"Error" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluat", "runs/x"], "evaluat: no such command; did you mean evaluate?"),
        (["finetune", "--boot_file_path", "train.py"], "run the boot file by `python` itself"),
        (["evaluate", "--ckpt_path=x.ckpt"], "--ckpt_path: an option of MindPet 1.0.4's launcher"),
        (["infer"], "RUN"),
        (["merge", "runs/x"], "--out"),
        (["export", "runs/x", "--out", "y"], "--format"),
        (["infer", "runs/x", "--max-new-tokens", "0"], "--max-new-tokens"),
    ],
)
def test_wrong_arguments_end_with_2(arguments, said, capsys):
    assert run_program(*arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
