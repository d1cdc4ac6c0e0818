import platform
import re
import sys
from importlib import metadata
from pathlib import Path

import mindspore
import pytest

from mindpet.utils.environment import RANGES, choose_device, describe_environment, read_environment
from mindpet.utils.exceptions import InputError
from mindpet.utils.requirements import find_unmet

ROOT = Path(__file__).parents[2]


def _pretend(monkeypatch, package, version):
    """Let `package` have another version; None takes it away."""
    if package == "python":
        monkeypatch.setattr(platform, "python_version", lambda: version)
        return
    read = metadata.version

    def read_wrong(name):
        if name != package:
            return read(name)
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", read_wrong)


def test_the_accepted_versions_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, accepted in RANGES.items():
        specifier = re.search(rf'"{package}(>=[^"]*)"|requires-{package} = "([^"]*)"', text)
        assert (specifier[1] or specifier[2]) == f">={accepted.lowest},<{accepted.below}"


def test_nothing_is_wrong_here():
    findings = {finding.name: finding for finding in read_environment()}
    assert findings["mindspore"].found == mindspore.__version__
    assert findings["python"].found == platform.python_version()
    assert "CPU" in findings["devices"].found
    assert "cores" in findings["processor"].found
    assert describe_environment(findings.values())["problems"] == {}


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [
        ("numpy", "2.0.0", "first reshape fails with NumPy 2; pip install 'numpy>=1.26,<2'"),
        ("numpy", "1.25.2", "pip install"),
        ("scipy", "1.16.0", "pip install 'scipy>=1.11,<1.16'"),
        ("scipy", None, "pip install"),
        ("mindspore", "2.6.0", "pip install 'mindspore>=2.7.0,<2.11'"),
        ("mindspore", "2.11.0rc1", "not tested"),
        ("mindspore", "unknown", "not tested"),
        ("python", "3.13.1", "use such a Python"),
        ("protobuf", "3.0.0", "mindspore asks for it; pip install 'protobuf>="),
        ("tokenizers", None, "mindpet asks for it; pip install 'tokenizers"),
        ("pydantic", "3.0", "mindpet asks for it"),
        ("mindpet", "1.0.4", "pip has installed 1.0.4"),
    ],
)
def test_what_is_known_to_be_bad_is_named_with_a_remedy(monkeypatch, package, version, remedy):
    _pretend(monkeypatch, package, version)
    report = describe_environment(read_environment())
    assert report["environment"][package] == version
    assert report["problems"].keys() == {package}
    assert remedy in report["problems"][package]


@pytest.mark.parametrize(
    ("package", "version"),
    [("mindspore", "2.7.0"), ("mindspore", "2.10.3"), ("numpy", "1.26"), ("scipy", "1.15.3"), ("python", "3.12.9")],
)
def test_what_is_supported_is_no_problem(monkeypatch, package, version):
    _pretend(monkeypatch, package, version)
    assert describe_environment(read_environment())["problems"] == {}


def test_mindformers_and_the_version_that_it_pins_are_noted(monkeypatch):
    asked = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: ["mindpet==1.0.4"] if name == "mindformers" else asked(name))
    _pretend(monkeypatch, "mindformers", "1.7.0")
    report = describe_environment(read_environment())
    assert report["problems"] == {}
    assert "mindpet==1.0.4" in report["notes"]["mindformers"]
    assert "--no-deps mindpet" in report["notes"]["mindformers"]


@pytest.mark.parametrize(
    ("version", "specifier", "fits"),
    [
        ("2.0", ">=2", True),
        ("2", ">=2.0.0", True),
        ("1.9.9", ">=2", False),
        ("2.10", "<2.9,>=2", False),
        ("7.34.1", "==7.34.1", True),
        ("7.34.2", "==7.34.1", False),
        ("1.0rc1", "", True),
    ],
)
def test_a_requirement_is_met_by_versions_within_its_bounds(monkeypatch, version, specifier, fits):
    monkeypatch.setattr(metadata, "requires", lambda name: [f"some{specifier}", "other; extra == 'dev'"])
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert (find_unmet("owner", ()) == []) == fits


def test_a_mindspore_that_cannot_be_imported_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindspore", None)
    assert "mindspore cannot be imported" in describe_environment(read_environment())["problems"]["devices"]
    with pytest.raises(InputError, match="mindspore cannot be imported"):
        choose_device("CPU")


def test_a_device_is_chosen_or_refused():
    assert choose_device("CPU") == choose_device(None) == "CPU"
    with pytest.raises(InputError, match="device: Ascend cannot be used here"):
        choose_device("Ascend")
