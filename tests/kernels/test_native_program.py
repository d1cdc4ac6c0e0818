"""The native kernels without Python: a C++ program that compares them with loops in double precision."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scale import rarely

BUILD = Path(__file__).parent / "native" / "build.py"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("plain", marks=rarely), "address", pytest.param("thread", marks=rarely)])
def test_the_program_finds_no_fault(kind):
    result = subprocess.run([sys.executable, BUILD, kind], capture_output=True, text=True, check=False)
    if result.returncode == 2:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout + result.stderr
