"""Names of checkpoint files: `<prefix>-<epoch>_<step in epoch>.ckpt`, and `<prefix>_<run>-...` for further runs."""

import re
from pathlib import Path

__all__ = ["checksum_path", "find_checkpoints", "find_stray_checksums", "free_prefix"]


_CHECKSUM_SUFFIX = ".sha256.json"


def checksum_path(checkpoint: Path) -> Path:
    """Return where the checksums of a checkpoint stand."""
    return checkpoint.with_name(checkpoint.name + _CHECKSUM_SUFFIX)


def find_checkpoints(folder: Path, prefix: str) -> list[Path]:
    """Return the checkpoints of all runs with this prefix, oldest first: by run, then by epoch, then by step."""
    ages = {path: age for path in folder.iterdir() if (age := _age(path.name, prefix)) is not None}
    return sorted(ages, key=ages.__getitem__)


def find_stray_checksums(folder: Path, prefix: str) -> list[Path]:
    """Return the checksum files of this prefix whose checkpoint is not there."""
    sums = [path for path in folder.iterdir() if path.name.endswith(_CHECKSUM_SUFFIX)]
    checkpoints = {path: path.with_name(path.name.removesuffix(_CHECKSUM_SUFFIX)) for path in sums}
    return [
        path
        for path, checkpoint in checkpoints.items()
        if _age(checkpoint.name, prefix) is not None and not checkpoint.exists()
    ]


def free_prefix(folder: Path, prefix: str) -> str:
    """Return the prefix for a new run: as given, or with the next number where a run has left checkpoints."""
    runs = [age[0] for path in find_checkpoints(folder, prefix) if (age := _age(path.name, prefix))]
    return f"{prefix}_{max(runs) + 1}" if runs else prefix


def _age(name: str, prefix: str) -> tuple[int, int, int] | None:
    parts = re.fullmatch(rf"{re.escape(prefix)}(?:_(\d+))?-(\d+)_(\d+)\.ckpt", name)
    return None if parts is None else (int(parts[1] or 0), int(parts[2]), int(parts[3]))
