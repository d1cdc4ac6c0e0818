"""The file beside a checkpoint that tells whether the checkpoint is whole.

`<name>.ckpt.sha256.json` holds the size and SHA-256 of the file, and for every tensor in it the dtype, shape and
SHA-256 of its bytes. Those of an encrypted checkpoint are HMAC-SHA256 under its key, so that they tell nothing about
the tensors to a reader without the key.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mindspore import Tensor, load_checkpoint

from mindpet.graph.checkpoint_names import checksum_path
from mindpet.graph.ckpt_format import find_misfit
from mindpet.storage.reader import read_json, require_file
from mindpet.utils.exceptions import InputError

__all__ = ["describe_checkpoint", "is_whole", "read_checkpoint"]

_BLOCK_BYTES = 1 << 20


def describe_checkpoint(
    checkpoint: Path, appended: Iterable[str], dec_key: bytes | None = None, dec_mode: str = "AES-GCM"
) -> dict[str, Any]:
    """Return the checksums of a checkpoint that has just been written, from what can be read back of it.

    Args:
        checkpoint: The file, whole.
        appended: Names of the values in it that are no parameters.
        dec_key: The key of an encrypted file.
        dec_mode: Its encryption.
    """
    tensors = load_checkpoint(str(checkpoint), dec_key=dec_key, dec_mode=dec_mode)
    return {
        "version": 1,
        **_describe_file(checkpoint),
        "appended": sorted(appended),
        "tensors": {name: _describe_tensor(tensor, dec_key) for name, tensor in tensors.items()},
    }


def is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint has its checksums beside it and agrees with them (no key is needed)."""
    try:
        sums = _read_sums(checkpoint)
        return sums is not None and _file_agrees(checkpoint, sums)
    except (InputError, OSError):
        return False


def read_checkpoint(checkpoint: Path, dec_key: bytes | None = None, dec_mode: str = "AES-GCM") -> dict[str, Tensor]:
    """Read the parameters of a checkpoint, without the values that were appended to it.

    Args:
        checkpoint: A .ckpt file.
        dec_key: The key of an encrypted file.
        dec_mode: Its encryption.

    Returns:
        The parameters by name. Where no checksums stand beside the file, it is not verified, and `epoch_num`,
        `step_num` and texts are taken as appended.

    Raises:
        InputError: The file does not exist, cannot be read, or differs from its checksums.
    """
    require_file(checkpoint)
    sums = _read_sums(checkpoint)
    if sums is not None:
        _check_file(checkpoint, sums)
    try:
        if sums is None and dec_key is None and (misfit := find_misfit(checkpoint.read_bytes())):
            raise ValueError(f"{misfit} has more or fewer bytes than its shape asks for")
        content = load_checkpoint(str(checkpoint), dec_key=dec_key, dec_mode=dec_mode)
    except Exception as error:  # MindSpore raises whatever its parser meets in a damaged file.
        cause = " ".join(str(error).split())
        raise InputError(
            f"{checkpoint} cannot be read as a checkpoint ({cause}); check the file and, if it is encrypted, the key."
        ) from error
    if strange := sorted(name for name, value in content.items() if not isinstance(value, Tensor | str)):
        raise InputError(
            f"{checkpoint} cannot be read as a checkpoint ({', '.join(strange)} is no tensor); give an undamaged file."
        )
    if sums is None:
        appended = {"epoch_num", "step_num"} | {name for name, value in content.items() if isinstance(value, str)}
    else:
        appended = set(sums["appended"])
        _check_tensors(checkpoint, content, sums["tensors"], dec_key)
    return {name: value for name, value in content.items() if name not in appended}


def _read_sums(checkpoint: Path) -> dict[str, Any] | None:
    path = checksum_path(checkpoint)
    if not path.exists():
        return None
    sums = read_json(path)
    types = {"size": int, "sha256": str, "appended": list, "tensors": dict}
    is_usable = isinstance(sums, dict) and all(isinstance(sums.get(key), kind) for key, kind in types.items())
    if not is_usable or not all(isinstance(name, str) for name in sums["appended"]):
        raise InputError(f"{path} holds no checksums; remove it to load the checkpoint unverified.")
    return sums


def _describe_file(checkpoint: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with checkpoint.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return {"size": checkpoint.stat().st_size, "sha256": digest.hexdigest()}


def _check_file(checkpoint: Path, sums: Mapping[str, Any]) -> None:
    try:
        agrees = _file_agrees(checkpoint, sums)
    except OSError as error:
        raise InputError(
            f"{checkpoint} cannot be read ({error.strerror or error}); name a file that you may read."
        ) from error
    if not agrees:
        raise InputError(
            f"{checkpoint} is damaged: it differs from {checksum_path(checkpoint).name}; use an earlier checkpoint."
        )


def _file_agrees(checkpoint: Path, sums: Mapping[str, Any]) -> bool:
    if checkpoint.stat().st_size != sums["size"]:
        return False
    return _describe_file(checkpoint)["sha256"] == sums["sha256"]


def _describe_tensor(value: Tensor | str, key: bytes | None) -> dict[str, Any]:
    if isinstance(value, str):
        return {"dtype": "str", "shape": [], "sha256": _digest(value.encode("utf-8"), key)}
    return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": _digest(value.get_bytes(), key)}


def _digest(data: bytes, key: bytes | None) -> str:
    return hashlib.sha256(data).hexdigest() if key is None else hmac.new(key, data, "sha256").hexdigest()


def _check_tensors(
    checkpoint: Path, content: Mapping[str, Tensor | str], sums: Mapping[str, Any], key: bytes | None
) -> None:
    found = {name: _describe_tensor(value, key) for name, value in content.items()}
    differing = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
    if differing:
        raise InputError(
            f"{checkpoint} differs from {checksum_path(checkpoint).name} in {', '.join(differing)}; use an earlier"
            " checkpoint."
        )
