"""What CI shortens: `make test-full` repeats it as often as was promised, the cases marked `rarely` included."""

import os

import pytest

FULL = os.environ.get("MINDPET_FULL_TESTS") == "1"
rarely = pytest.mark.skipif(not FULL, reason="run by `make test-full`")
# Marks of a case of a fast test that repeats what other cases of it show: it is no longer one of the fast tests.
REPETITION = [pytest.mark.slow, rarely]
