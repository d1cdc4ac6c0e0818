"""How often a test repeats what takes long: in CI less than `make test-full`, which repeats it as often as was promised."""

import os

FULL = os.environ.get("MINDPET_FULL_TESTS") == "1"
