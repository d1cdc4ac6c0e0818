"""Writing a checkpoint so that it stands under its name whole, with its checksums beside it, or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mindspore import Tensor, save_checkpoint

from mindpet.graph.checkpoint_names import checksum_path
from mindpet.graph.checksums import describe_checkpoint
from mindpet.storage.atomic import publish_file, write_json
from mindpet.storage.reader import require_folder
from mindpet.utils.exceptions import InputError

__all__ = ["publish_checkpoint", "staging_prefix", "write_trainable"]


def write_trainable(values: Mapping[str, Tensor], file: str | os.PathLike[str]) -> None:
    """Write parameters, such as `gather_adapter` returns, as one checkpoint that `load_trainable` reads.

    The checkpoint and its checksums, in `<file>.sha256.json`, are on the disk when the function returns.

    Args:
        values: The parameters by name.
        file: The .ckpt file to write. Its folder exists, and nothing stands under its name or its checksums'.

    Raises:
        TypeError: `values` is no mapping from names to Tensors.
        InputError: `values` is empty, `file` ends in something else than .ckpt or exists, or it cannot be written. The
            folder is as before then.
    """
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise TypeError(f"values is a {type(values).__name__}; give Tensors by name, as gather_adapter returns them.")
    target = Path(file)
    if not values:
        raise InputError(f"There is no parameter to write into {target}; give at least one.")
    if target.suffix != ".ckpt":
        raise InputError(f"{target} does not end in .ckpt, as the names of MindSpore's checkpoints do; add it.")
    require_folder(target.parent)
    _require_free(target, checksum_path(target))
    content = [{"name": name, "data": value} for name, value in values.items()]
    publish_checkpoint(target, target.stem, lambda staged: save_checkpoint(content, str(staged)))


def publish_checkpoint(
    target: Path,
    prefix: str,
    write: Callable[[Path], None],
    appended: Iterable[str] = (),
    key: bytes | None = None,
    mode: str = "AES-GCM",
) -> None:
    """Have a checkpoint written into a staging folder, then give its checksums and it their names.

    Args:
        target: The checkpoint's path, under which nothing stands.
        prefix: Names the staging folder, which a killed process leaves beside the checkpoint; see `staging_prefix`.
        write: Writes the checkpoint under the path that it is given.
        appended: Names of the values in it that are no parameters.
        key: Its key, if `write` encrypts it.
        mode: Its encryption.

    Raises:
        InputError: The file cannot be written. The folder is as before then.
    """
    sums = checksum_path(target)
    try:
        with _staging_folder(target.parent, prefix) as staging:
            staged = staging / target.name
            write(staged)
            write_json(sums, describe_checkpoint(staged, appended, key, mode), staging)
            publish_file(staged, target)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}); free space or name another folder. All earlier"
            " checkpoints are untouched."
        ) from error
    finally:
        if not target.exists():
            sums.unlink(missing_ok=True)


def staging_prefix(prefix: str) -> str:
    """Return how the names of the staging folders for checkpoints with this prefix begin."""
    return f".{prefix}-staging-"


def _require_free(*paths: Path) -> None:
    for path in paths:
        try:
            is_taken = path.exists()
        except OSError as error:  # The name is too long, for example.
            raise InputError(f"{path} cannot be written ({error.strerror or error}); give another name.") from error
        if is_taken:
            raise InputError(f"{path} exists already; name a new file, or remove this one first.")


@contextmanager
def _staging_folder(folder: Path, prefix: str) -> Iterator[Path]:
    staging = Path(tempfile.mkdtemp(prefix=staging_prefix(prefix), dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
