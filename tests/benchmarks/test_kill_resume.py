import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scale import FULL
from tests.tiny import write_bert, write_texts

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_resume.py"
KILLS = 20 if FULL else 7
EPOCHS = 14 if FULL else 6


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    model, data = write_bert(tmp_path / "model"), write_texts(tmp_path / "texts.jsonl")
    flags = ["--model", str(model), "--data", str(data), "--batch-size", "8", "--save-steps", "4", "--no-baselines"]
    command = [sys.executable, SCRIPT, "--kills", str(KILLS), "--seed", "1", "--", *flags, "--epochs", str(EPOCHS)]
    # As users have it, a run that goes on reads the graphs that the one before has compiled.
    graphs = "off" if FULL else "keep"
    environment = os.environ | {"MINDPET_GRAPHS": graphs, "MINDPET_CACHE": str(tmp_path / "cache")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, *more], env=environment, **streams)
        for more in ([], ["--lora-dropout", "0.1", "--dropout", "0.1"])
    ]
    for process in processes:
        printed, said = process.communicate()
        assert process.returncode == 0, said
        moments = list(map(int, re.search(rf"{KILLS} kills, after steps (.*)", printed)[1].split(",")))
        assert len(set(moments)) > KILLS / 2
        assert max(moments) > 20 * EPOCHS, "the last kills come late"
        assert len(set(re.findall(r"compiling the graph \((.*) tokens\)", said))) == 2, "there are two widths"
