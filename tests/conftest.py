import os

# The tests compile many small graphs; more threads than one only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Run the test in graph mode and in PyNative mode."""
    import mindspore

    before = mindspore.get_context("mode")
    mindspore.set_context(mode=mindspore.GRAPH_MODE if request.param == "graph" else mindspore.PYNATIVE_MODE)
    yield request.param
    mindspore.set_context(mode=before)
