"""Compiled graphs that the next run finds again, so that it begins to train at once.

MindSpore's compile cache writes the graph of a cell to a file and reads it instead of compiling; the values of
Parameters are not part of it. It takes a file for the right one as long as the script that was started is the same, and
so computes with numbers of before where only a setting has changed. Here each graph has a folder of its own, named by a
digest of everything that it was made from, and what is not known for certain is compiled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mindspore
from mindspore import Tensor, nn

from mindpet import kernels
from mindpet.kernels.switch import LIBRARY, on_stand_alone_cpu
from mindpet.storage.wheels import cache_folder
from mindpet.train.description import describe_for_good
from mindpet.utils.exceptions import InputError

__all__ = ["graphs_folder", "kept_graph"]

_LIMIT = 100  # graphs, of some MB each: those that were used last are kept
_VARIABLE = "MINDPET_GRAPHS"
_SWITCH, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
_GRAPH, _SCRIPTS, _DIGEST = "graph.mindir", "compile_dependency.hash", "sha256"
_PROGRAM = b"from mindpet.cli.main import main"  # in the script of `mindpet`, and of `python -m mindpet.cli`
_CONTEXT = (
    *("mode", "device_target", "deterministic", "jit_level", "jit_syntax_level"),
    *("enable_graph_kernel", "graph_kernel_flags"),
)


def graphs_folder() -> Path | None:
    """Return where the graphs of training runs are kept, below `cache_folder`.

    Returns:
        A folder, or None where MINDPET_GRAPHS is 'off' or no cache folder can be named.

    Raises:
        InputError: MINDPET_GRAPHS is neither 'keep' nor 'off'.
    """
    chosen = os.environ.get(_VARIABLE, "keep")
    if chosen not in ("keep", "off"):
        raise InputError(f"{_VARIABLE} is {chosen!r}; accepted are keep and off: choose one of them.")
    if chosen == "off":
        return None
    try:
        return cache_folder() / "graphs"
    except (OSError, RuntimeError):  # there is no home, or no working directory
        return None


@contextmanager
def kept_graph(
    cell: nn.Cell, inputs: Sequence[Tensor], folder: Path | None, blocks: Sequence[Any] = ()
) -> Iterator[None]:
    """Let the graph of `cell` be read where it was kept, and otherwise be kept when it is compiled within.

    Graphs are kept in graph mode on a stand-alone CPU, and only of cells that consist of MindPet's and MindSpore's own
    classes; and only by the program `mindpet`, as MindSpore goes through the script that was started, and fails on many
    a one. A damaged file, a full disk or a folder that cannot be written costs a compilation and nothing else.

    Args:
        cell: What is called within on `inputs`, for the first time on such; nothing else may be compiled there.
        inputs: Of whose shapes and dtypes the graph is.
        folder: Where graphs of all kinds are kept; it is made when it is needed. None keeps none.
        blocks: What `Blocks.described` tells of the cell's layers that are compiled as blocks.
    """
    key = _key(cell, inputs, blocks) if folder is not None and _is_served() else None
    desk = None if key is None else _desk()
    if folder is None or key is None or desk is None:
        yield
        return
    entry = folder / key
    kept = _read(entry)
    if kept is not None and not desk.put(*kept):
        kept = None
    with _compile_cache(desk.folder):
        yield
    graph = desk.take()
    # A graph that was put there and is another one now was compiled, as MindSpore had missed one before.
    if graph is not None and (kept is None or graph != kept[0]) and _is_as_it_began(_files()):
        with suppress(OSError):
            _write(graph, desk.scripts.read_bytes(), entry)
            _forget_the_oldest(folder)


def _read(entry: Path) -> tuple[bytes, bytes] | None:
    """Return a kept graph and what MindSpore has noted of the script, if they are not damaged."""
    try:
        graph, scripts = (entry / _GRAPH).read_bytes(), (entry / _SCRIPTS).read_bytes()
        is_whole = (entry / _DIGEST).read_bytes() == _digest(graph, scripts).encode()
    except OSError:
        return None
    with suppress(OSError):
        entry.touch()
    return (graph, scripts) if is_whole else None


def _write(graph: bytes, scripts: bytes, entry: Path) -> None:
    """Keep a graph that MindSpore has written, in the place of a damaged one."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="new-", dir=entry.parent, ignore_cleanup_errors=True) as unfinished:
        for name, content in ((_GRAPH, graph), (_SCRIPTS, scripts), (_DIGEST, _digest(graph, scripts).encode())):
            (Path(unfinished) / name).write_bytes(content)
        shutil.rmtree(entry, ignore_errors=True)
        Path(unfinished).rename(entry)


def _forget_the_oldest(folder: Path) -> None:
    entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for oldest in entries[_LIMIT:]:
        shutil.rmtree(oldest, ignore_errors=True)


class _Desk:
    """The folder, one for the whole process, in which MindSpore reads and writes graphs; it numbers them.

    No graph but the one that is wanted ever lies there when MindSpore looks, whatever its number.
    """

    def __init__(self) -> None:
        self._room = TemporaryDirectory(prefix="mindpet-graphs-", ignore_cleanup_errors=True)
        self.folder = self._room.name
        self.scripts = Path(self.folder) / "rank_0" / "graph_cache" / _SCRIPTS
        self._number = 0

    def put(self, graph: bytes, scripts: bytes) -> bool:
        """Put a graph there as the one that MindSpore takes next; tell whether there was room for it."""
        try:
            self.scripts.parent.mkdir(parents=True, exist_ok=True)
            self.scripts.write_bytes(scripts)
            (self.scripts.parent / f"compile_cache_{self._number}.mindir").write_bytes(graph)
        except OSError:
            self.clear()
            return False
        return True

    def take(self) -> bytes | None:
        """Take away the graph that lies there after a compilation; None where none does."""
        graphs = {int(file.stem.rpartition("_")[2]): file for file in self._graphs()}
        try:
            newest = max(graphs, default=-1)
            content = graphs[newest].read_bytes() if graphs else None
            self._number = max(self._number, newest + 1)
        except OSError:
            content = None
        self.clear()
        return content

    def clear(self) -> None:
        """Take away what lies there."""
        for file in self._graphs():
            file.unlink()

    def _graphs(self) -> list[Path]:
        return list(self.scripts.parent.glob("compile_cache_*.mindir"))


@lru_cache(maxsize=1)
def _the_desk() -> _Desk:
    return _Desk()


def _desk() -> _Desk | None:
    """Return the desk of this process, cleared, or None where there is no room for one."""
    try:
        desk = _the_desk()
        desk.clear()
    except OSError:
        return None
    return desk


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@contextmanager
def _compile_cache(folder: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (_SWITCH, _PATH)}
    os.environ |= {_SWITCH: "1", _PATH: folder}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _is_served() -> bool:
    """Tell whether graphs are kept here: not where the user has MindSpore keep them."""
    if _SWITCH in os.environ or mindspore.get_context("enable_compile_cache") is not None:
        return False
    in_graph_mode = mindspore.get_context("mode") == mindspore.GRAPH_MODE
    return on_stand_alone_cpu() and in_graph_mode and _PROGRAM in _script()


@lru_cache(maxsize=1)
def _script() -> bytes:
    """Return the content of the script that was started; nothing where there is none."""
    try:
        return Path(sys.argv[0]).read_bytes()
    except OSError:
        return b""


def _key(cell: nn.Cell, inputs: Sequence[Tensor], blocks: Sequence[Any]) -> str | None:
    """Return the digest of all that a graph is made from; None where something of it is not known."""
    try:
        description, code = describe_for_good(cell), _code()
    except (RuntimeError, TypeError, ValueError):  # of an attribute that cannot be gone through
        return None
    if description is None or code is None:
        return None
    parts = (
        description,
        [(tuple(tensor.shape), str(tensor.dtype)) for tensor in inputs],
        blocks,
        kernels.kernels_in_use(),
        [(name, str(mindspore.get_context(name))) for name in _CONTEXT],
        sorted((name, value) for name, value in os.environ.items() if name.startswith("MS_")),
        code,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _code() -> tuple[str, ...] | None:
    """Return the versions of everything that takes part, of ours by its content.

    None where a file cannot be read, or was changed after this process began: it may have read what was there before.
    """
    files = _files()
    if not _is_as_it_began(files):
        return None
    try:
        contents = _digest(*(part for file in files for part in (str(file).encode(), file.read_bytes())))
    except OSError:
        return None
    script = str(Path(sys.argv[0]).absolute()), _digest(_script())
    return (*script, sys.version, mindspore.__version__, mindspore.__file__, contents)


def _files() -> list[Path]:
    """Return what of the package takes part in a graph."""
    package = Path(__file__).parents[1]
    return [*sorted(package.rglob("*.py")), *([LIBRARY] if LIBRARY.exists() else [])]


def _is_as_it_began(files: Sequence[Path]) -> bool:
    """Tell whether no file was changed after this process began."""
    try:
        start = _start_of_the_process()
        return all(file.stat().st_ctime < start for file in files)
    except OSError:
        return False


def _start_of_the_process() -> float:
    """Return when this process began, in seconds since 1970 as files have them."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    running = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - running
