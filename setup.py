"""Compile the native kernels into the package where a C++ compiler is at hand; otherwise the package goes without them.

Everything else about the package is in pyproject.toml.
"""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path(__file__).parent / "mindpet" / "kernels" / "cpp"
BUILDER = runpy.run_path(str(NATIVE / "build.py"))
COMPILER = BUILDER["find_compiler"]()
LIBRARY = Extension(
    "mindpet.kernels.libmindpet_kernels",
    sources=[str(file.relative_to(Path(__file__).parent)) for file in sorted(NATIVE.glob("*.cpp"))],
    optional=True,
)


class BuildLibrary(build_ext):
    """Builds the library with the package's own builder; a failure is a note, no error."""

    def get_ext_filename(self, fullname):
        """Return a name without Python's version in it: the library doesn't know Python."""
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext):
        """Compile and link."""
        library = Path(self.get_ext_fullpath(ext.name)).absolute()
        library.unlink(missing_ok=True)  # one of an earlier build would stay when this one fails
        try:
            BUILDER["build_library"](COMPILER, library)
        except RuntimeError as error:
            print(f"mindpet goes without its native kernels: {error}", file=sys.stderr)


class Wheel(bdist_wheel):
    """A wheel for any Python 3, of this platform if it contains the library."""

    def get_tag(self):
        """Return the tags for Python, its ABI and the platform."""
        platform = super().get_tag()[2]
        has_library = any(Path(self.bdist_dir).rglob("libmindpet_kernels.so"))
        return "py3", "none", platform if has_library else "any"


if COMPILER is None:
    print("mindpet goes without its native kernels: no C++ compiler for x86-64 Linux was found", file=sys.stderr)

setup(
    ext_modules=[LIBRARY] if COMPILER else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
