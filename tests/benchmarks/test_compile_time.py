import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindpet.kernels import possible_kernels

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compile_time.py"

pytestmark = pytest.mark.skipif("f32" not in possible_kernels(), reason="no kernels 'f32' here")


@pytest.mark.slow
def test_compiling_is_measured_with_blocks_and_without():
    command = [sys.executable, SCRIPT, "--tiny", "--case", "bert-base", "--method", "lora", "--runs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (row,) = re.findall(r"\| bert-base \| lora +\| (\d+) +((?:\| +\d+\.\d s +)+)\|", result.stdout)
    assert int(row[0]) > 0
    seconds = [float(value) for value in re.findall(r"(\d+\.\d) s", row[1])]
    assert len(seconds) == 4
    assert all(seconds)
