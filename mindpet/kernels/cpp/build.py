"""Compile the native kernels into one shared library: `python build.py` puts it where the package looks for it.

Needs GCC 10 or later for x86-64 and nothing else; imports nothing of ours, so that the package's build can run it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = SOURCES.parent / "libmindpet_kernels.so"

_EXPORTS = f"-Wl,--version-script={SOURCES / 'exports.map'}"
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
_INSTRUCTION_SETS = {"avx2": _AVX2, "avx512": _AVX512, "avx512_bf16": (*_AVX512, "-mavx512bf16")}


def find_compiler() -> str | None:
    """Return the C++ compiler, CXX of the environment before g++ and c++; None without one or off x86-64 Linux."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    names = filter(None, (os.environ.get("CXX"), "g++", "c++"))
    return next(filter(None, map(shutil.which, names)), None)


def compile_objects(compiler: str, folder: Path, options: Sequence[str] = ("-O3",)) -> list[Path]:
    """Compile all sources into a folder and return the objects in the order in which they are to be linked.

    What every processor runs comes first: of the C++ library's own templates, which several objects contain, the linker
    takes the first copy.

    Raises:
        RuntimeError: A file does not compile; the message is the compiler's.
    """
    jobs: dict[Path, list[str]] = {}
    for name in ("threads", "choice", "block", "infer", "entry"):
        jobs[folder / f"{name}.o"] = [str(SOURCES / f"{name}.cpp")]
    for name, flags in _INSTRUCTION_SETS.items():
        jobs[folder / f"{name}.o"] = [*flags, f"-DMINDPET_ISA={name}", str(SOURCES / "isa.cpp")]

    def compile_one(job: tuple[Path, list[str]]) -> None:
        run([compiler, *_COMMON, *options, *job[1], "-c", "-o", str(job[0])])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs.items()))
    return list(jobs)


def build_library(compiler: str, library: Path = LIBRARY) -> None:
    """Compile and link the shared library; it exists whole or not at all.

    Raises:
        RuntimeError: The compiler or the linker failed; the message is theirs.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects = compile_objects(compiler, Path(folder))
        linked = Path(folder) / library.name
        run([compiler, "-shared", "-pthread", "-Wl,-z,nodelete", _EXPORTS, "-o", str(linked), *map(str, objects)])
        linked.replace(library)


def run(command: Sequence[str]) -> None:
    """Run a command, and raise a RuntimeError with what it wrote when it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(str(error)) from error
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr or result.stdout}")


if __name__ == "__main__":
    found = find_compiler()
    if found is None:
        sys.exit("no C++ compiler for x86-64 Linux was found: install g++, or name one in CXX")
    build_library(found)
    print(LIBRARY)
