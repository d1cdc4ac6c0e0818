import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_bert, write_texts

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kept_graphs.py"


@pytest.mark.slow
def test_the_program_compiles_once_and_later_runs_have_the_same_losses(tmp_path):
    model, data = write_bert(tmp_path / "model"), write_texts(tmp_path / "texts.jsonl")
    flags = ["--model", str(model), "--data", str(data), "--batch-size", "8", "--epochs", "1", "--no-baselines"]
    result = subprocess.run(
        [sys.executable, SCRIPT, "--runs", "2", "--", *flags], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "all runs have the same losses, bit for bit" in result.stdout
    first, second = (float(seconds) for seconds in re.findall(r"\| (\d+\.\d) s", result.stdout))
    assert second < first
    assert "correctness risks" not in result.stderr
