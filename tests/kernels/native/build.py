"""Build the native kernels' test program, run it, and end with its exit status.

`python build.py` is an ordinary build; `address` or `thread` behind it adds sanitizers.
"""

import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "mindpet" / "kernels" / "cpp"
OPTIONS = {
    "plain": ("-O3",),
    "address": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-O1", "-g", "-fsanitize=thread"),
}


def main(kind: str) -> int:
    builder = runpy.run_path(str(SOURCES / "build.py"))
    compiler = builder["find_compiler"]()
    if compiler is None:
        print("no C++ compiler for x86-64 Linux was found: install g++, or name one in CXX", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        objects = builder["compile_objects"](compiler, Path(folder), OPTIONS[kind])
        program = Path(folder) / "test"
        tests = map(str, sorted(HERE.glob("*.cpp")))
        options = (*OPTIONS[kind], "-std=c++17", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}")
        builder["run"]([compiler, *options, "-o", str(program), *map(str, objects), *tests])
        return subprocess.run([program], check=False).returncode and 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "plain"))
