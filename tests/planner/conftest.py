import pytest

from tests.planner.cuda_stubs import build_stubs
from tests.planner.planner import ask_planner


@pytest.fixture(scope="session")
def cuda_stubs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuda") / "stubs"
    build_stubs(folder)
    return folder


@pytest.fixture(scope="session")
def answers(cuda_stubs, tmp_path_factory):
    """Return the planner's answers to all cases, asked once: starting eight processes is what takes the time."""
    return ask_planner("tests.planner.cases", cuda_stubs, tmp_path_factory.mktemp("graphs"))
