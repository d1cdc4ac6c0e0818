"""Stand-ins for CUDA's libraries, with which MindSpore's GPU plugin, and so its parallel planner, loads without CUDA.

The planner refuses the CPU as its target, yet it finishes before any kernel is built. Nothing can be computed with the
stand-ins: each of their functions reports an error.
"""

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

# From each library that the plugin is linked to, to the beginning of the names of its functions.
PREFIXES = {
    "libcudart.so.11.0": "cuda",
    "libcublas.so.11": "cublas",
    "libcudnn.so.8": "cudnn",
    "libcufft.so.10": "cufft",
    "libcurand.so.10": "curand",
    "libcusolver.so.11": "cusolver",
    "libcusparse.so.11": "cusparse",
    "libnvrtc.so.11.2": "nvrtc",
    "libcuda.so.1": "cu",
}
_PLUGINS = ("libmindspore_gpu.so.11.6", "gpu/libcuda_ops.so.11")
_NVCC = '#!/bin/sh\necho "Cuda compilation tools, release 11.6, V11.6.55"\n'


def build_stubs(folder):
    """Build the stand-ins in `folder`/lib64 and an nvcc in `folder`/bin; MindSpore asks it for CUDA's version."""
    _require_tools()
    (folder / "lib64").mkdir(parents=True)
    (folder / "bin").mkdir()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(_NVCC)
    nvcc.chmod(0o755)
    functions = _needed_functions()
    for library in PREFIXES:
        _build_library(folder, library, functions[library])


def _require_tools():
    missing = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(
            f"{' and '.join(missing)} not found; the planner's tests build libraries with gcc and read others with nm. "
            "Install gcc and binutils, for example by `apt-get install gcc binutils`."
        )


def _plugins():
    root = Path(importlib.util.find_spec("mindspore").origin).parent / "lib" / "plugin"
    plugins = [root / name for name in _PLUGINS]
    for plugin in plugins:
        if not plugin.exists():
            raise RuntimeError(
                f"MindSpore carries no {plugin.name}; the planner's tests need a wheel with the GPU plugin for CUDA "
                "11.6. Install MindSpore 2.7 to 2.10 from PyPI on an x86-64 machine."
            )
    return plugins


def _needed_functions():
    """Return for each library the functions that the plugins take from it, by symbol version ('' is none)."""
    functions = defaultdict(lambda: defaultdict(set))
    for plugin in _plugins():
        command = ["nm", "-D", "--undefined-only", str(plugin)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for name, version in re.findall(r" U ((?:cu|nv)\w+)@*(\S*)$", listing, re.MULTILINE):
            owner = max((library for library, prefix in PREFIXES.items() if name.startswith(prefix)), key=_specificity)
            functions[version if version in PREFIXES else owner][version].add(name)
    return functions


def _specificity(library):
    return len(PREFIXES[library])


def _build_library(folder, library, by_version):
    source, script = folder / f"{library}.c", folder / f"{library}.map"
    source.write_text("".join(_definition(name) for name in sorted(set().union(*by_version.values()))))
    versions = [f"{version} {{ global: {'; '.join(names)}; }};" for version, names in by_version.items() if version]
    script.write_text("\n".join(versions))
    options = ["-shared", "-fPIC", "-w", f"-Wl,-soname,{library}"]
    if versions:
        options.append(f"-Wl,--version-script={script}")
    subprocess.run(["gcc", *options, "-o", str(folder / "lib64" / library), str(source)], check=True)


def _definition(name):
    """Return a C function that reports 'no device', or names this error where a text is asked for."""
    if name.endswith("String"):
        return f'const char *{name}(void) {{ return "no device"; }}\n'
    return f"int {name}(void) {{ return 100; }}\n"
