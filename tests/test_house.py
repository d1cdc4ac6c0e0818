"""The rules of the house: imports go one way, and importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mindpet

PACKAGE = Path(mindpet.__file__).parent

# What each room may import of ours, besides itself.
ALLOWED = {
    "utils": set(),
    "storage": {"utils"},
    "kernels": {"utils"},
    "delta": {"utils", "kernels", "storage"},
    "graph": {"utils", "storage"},
    "tuning": {"utils", "delta", "graph", "kernels", "storage"},
    "models": {"utils", "kernels", "storage"},
    "data": {"utils", "storage"},
    "train": {"utils", "storage", "kernels", "delta", "graph", "tuning", "models", "data"},
    "cli": {"utils", "storage", "kernels", "delta", "graph", "tuning", "models", "data", "train"},
}


def _imported_rooms(file):
    """Yield the rooms of ours that `file` imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "mindpet" and parts[1] in ALLOWED:
                yield parts[1]


def test_every_room_has_its_rule():
    assert {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    for file in (PACKAGE / room).rglob("*.py"):
        foreign = set(_imported_rooms(file)) - ALLOWED[room] - {room}
        assert not foreign, f"{file.relative_to(PACKAGE)} imports {foreign}"


@pytest.mark.parametrize("file", [str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")])
def test_no_private_name_of_mindspore_is_imported(file):
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mindspore":
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_")]


def test_importing_the_package_or_the_program_does_not_import_mindspore():
    code = "import sys, mindpet, mindpet.cli.main; sys.exit('mindspore' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", mindpet.__all__)
def test_every_public_name_resolves(name):
    assert getattr(mindpet, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'LoRaDense'"):
        _ = mindpet.LoRaDense
