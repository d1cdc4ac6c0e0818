import re
import subprocess
import sys
from pathlib import Path

import pytest

from mindpet.kernels import possible_kernels

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "layer_overhead.py"


@pytest.mark.slow
def test_each_kind_of_kernels_is_measured_in_each_shape():
    command = [sys.executable, str(SCRIPT), "--rank", "16", "--rows", "8", "--rounds", "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    share = r"[+-]\d+\.\d%"
    for kind in possible_kernels():
        for shape, expected in (("768 to 768", "6.2"), ("768 to 3072", "3.9"), ("3072 to 768", "3.9")):
            measured = r"\| +\d+\.\d\d \| +\d+\.\d\d " + rf"\| +{share} " * 3
            assert re.search(rf"\| {kind} +\| {shape} +{measured}\| +\+{expected}% \|", result.stdout), result.stdout
