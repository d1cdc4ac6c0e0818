import gc
import os
import sys
from collections import Counter

# The tests compile many small graphs; more threads than one only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test exchanges parts of the library, and must not see the graphs of another run.
os.environ["MINDPET_GRAPHS"] = "off"

import pytest

# MindSpore 2.10's SoftmaxGrad has, very rarely and on a loaded machine, given a wrong row sum in PyNative mode, where
# threads of its own run beside Python's (two tests of one run out of dozens, never in graph mode). A defect of ours
# fails again; what was run again stands as "rerun" in the summary.
_ONCE_MORE = pytest.mark.flaky(reruns=1, only_rerun="AssertionError")


@pytest.fixture(scope="module", autouse=True)
def fewer_objects():
    """Hide what is loaded by now, torch and its friends included, from the garbage collector.

    MindSpore goes through all that it knows at each compilation, and attaching and merging in search of optimizers.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def starting_mode():
    """Let each test start in MindSpore's own default, PyNative mode, whatever the one before has set."""
    yield
    if "mindspore" in sys.modules:
        import mindspore

        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


@pytest.fixture(params=["graph", "pynative"])
def mode(request):
    """Run the test in graph mode and in PyNative mode."""
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE if request.param == "graph" else mindspore.PYNATIVE_MODE)
    return request.param


@pytest.fixture
def one_by_one():
    """Let each operation in PyNative mode end before the next.

    For tests that do something a thousand times: on a busy machine MindSpore's threads wait long for each other.
    """
    import mindspore

    mindspore.set_context(pynative_synchronize=True)
    yield
    mindspore.set_context(pynative_synchronize=False)


def pytest_collection_modifyitems(items):
    """Keep the tests of a file, and of the planner's whole folder, in one process, but for those that stand alone."""
    for item in items:
        file = item.path.relative_to(item.config.rootpath)
        if item.get_closest_marker("alone") is None:
            group = file.parent if file.parent.name == "planner" else file
            item.add_marker(pytest.mark.xdist_group(str(group)))
        if hasattr(item, "callspec") and item.callspec.params.get("mode") == "pynative":
            item.add_marker(_ONCE_MORE)


def pytest_terminal_summary(terminalreporter):
    """Print how long each file took."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                seconds[report.nodeid.split("::")[0]] += report.duration
    terminalreporter.section("time by file")
    for file, total in seconds.most_common():
        terminalreporter.write_line(f"{total:7.1f} s  {file}")
