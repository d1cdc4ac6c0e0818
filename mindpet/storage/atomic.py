"""Files and folders that exist whole or not at all.

The last step of every write is a rename, after the content has reached the disk: a crash, a full disk or Ctrl-C leaves
the old file as it was and no half of a new one.
"""

import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from mindpet.utils.exceptions import InputError

__all__ = [
    "make_folder",
    "place_folder",
    "publish_file",
    "publish_folder",
    "remove_file",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview, staging: str | Path | None = None) -> None:
    """Write `data` to `path`, replacing a file that stands there.

    Args:
        path: The file to write. Its folder must exist.
        data: The whole content.
        staging: The folder, on the same file system, for the unfinished file, which a killed process leaves there;
            by default the folder of `path`.

    Raises:
        InputError: The path cannot be written (no such folder, no permission, disk full, a folder of that name).
    """
    path = Path(path)
    staged = Path(staging or path.parent) / f".{uuid.uuid4().hex}.tmp"
    try:
        with staged.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    finally:
        _remove(staged)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, staging: str | Path | None = None) -> None:
    """Write `value` to `path` as indented JSON in UTF-8; see `write_bytes`.

    Raises:
        InputError: The path cannot be written.
        TypeError: JSON has no form for something in `value`; the file is left as it was.
        ValueError: `value` holds a NaN or an infinite number, which JSON cannot express.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"), staging)


def publish_file(staged: str | Path, target: str | Path) -> None:
    """Give the finished file `staged` the name `target`, replacing a file that stands there, once it is on the disk.

    Args:
        staged: A complete file on the same file system as `target`. It is gone afterwards, also after an error.
        target: The name to publish it under. Its folder must exist.

    Raises:
        InputError: The target cannot be written, or is a folder.
    """
    staged, target = Path(staged), Path(target)
    try:
        _sync(staged)
        staged.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise InputError(_cannot_write(target, error)) from error
    finally:
        _remove(staged)


def publish_folder(staged: str | Path, target: str | Path) -> None:
    """Give the finished folder `staged` the name `target` in one step, once all of it is on the disk.

    Where another process has published the same target meanwhile, theirs stays and ours is removed.

    Args:
        staged: A complete folder on the same file system as `target`. It is gone afterwards, also after an error.
        target: The name to publish it under. Its parent folder must exist.

    Raises:
        InputError: The target cannot be written, or is a file.
    """
    staged, target = Path(staged), Path(target)
    try:
        _sync_tree(staged)
        _rename_unless_taken(staged, target)
        _sync(target.parent)
    except OSError as error:
        raise InputError(_cannot_write(target, error)) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def place_folder(staged: str | Path, target: str | Path, overwrite: bool) -> None:
    """Give the finished folder `staged` the name `target`, once all of it is on the disk, or leave all as it was.

    A folder that is replaced is moved aside first, comes back after an error, and is removed only when the new one has
    its name; a process that is killed in between leaves it whole, as `.<name>-replaced-...` beside the target.

    Args:
        staged: A complete folder on the same file system as `target`. It is gone afterwards, also after an error.
        target: The name to publish it under. Its parent folder must exist.
        overwrite: Whether a folder of that name is replaced; if not, one that holds something is an error.

    Raises:
        InputError: The target cannot be written, or is a file.
    """
    staged, target = Path(staged), Path(target)
    aside = target.with_name(f".{target.name}-replaced-{uuid.uuid4().hex}")
    is_placed = False
    try:
        _sync_tree(staged)
        if overwrite and target.is_dir():
            target.rename(aside)
        staged.rename(target)
        is_placed = True
        _sync(target.parent)
    except BaseException as error:
        if is_placed:
            shutil.rmtree(target, ignore_errors=True)
        if aside.exists():
            aside.rename(target)
        if isinstance(error, OSError):
            raise InputError(_cannot_write(target, error)) from error
        raise
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def make_folder(path: str | Path) -> None:
    """Make a folder, and those above it that are missing, and wait until their names are on the disk.

    Raises:
        InputError: A folder cannot be made, or `path` is a file.
    """
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.is_dir()]
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error


def remove_file(path: str | Path) -> None:
    """Remove a file, if it exists, and wait until its name is gone from the disk.

    Raises:
        InputError: The file cannot be removed.
    """
    path = Path(path)
    try:
        path.unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be removed ({error.strerror or error}); check its folder's rights.") from error


def _rename_unless_taken(staged: Path, target: Path) -> None:
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not target.is_dir():
            raise


def _sync_tree(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _sync_tree(entry)
        else:
            _sync(entry)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, has reached the disk."""
    if os.name == "nt":  # Windows cannot open a folder, and no file that is open for reading only can be synchronised.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(staged: Path) -> None:
    try:
        staged.unlink(missing_ok=True)
    except OSError:  # The folder itself cannot be reached: then nothing was written either.
        return


def _cannot_write(path: Path, error: OSError) -> str:
    cause = error.strerror or str(error)
    return f"{path} cannot be written ({cause}); name a path in an existing folder that you may write to."
