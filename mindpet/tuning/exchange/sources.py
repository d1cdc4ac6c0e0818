"""Which kind of file or folder holds an adapter."""

from __future__ import annotations

from pathlib import Path

from mindspore import nn

from mindpet.graph.parameters import canonical_name
from mindpet.storage.reader import read_json, read_tensor_file, require_folder
from mindpet.tuning.exchange.adapter import Adapter
from mindpet.tuning.exchange.folder import CONFIG_FILE, host_tensors, read_folder, read_own_file
from mindpet.tuning.exchange.legacy import MANIFEST_FILE, read_ckpt, read_mindformers
from mindpet.tuning.exchange.peft.read import is_peft, read_peft
from mindpet.utils.exceptions import InputError

__all__ = ["read_adapter"]


def read_adapter(path: Path, net: nn.Cell) -> Adapter:
    """Read an adapter from any file or folder that is known.

    Args:
        path: The file or folder.
        net: The network that it is for, which tells what PEFT's names mean; it is left as it is.

    Raises:
        InputError: It is of no known kind, damaged or incomplete.
    """
    if path.is_dir():
        folder = require_folder(path)
        if (folder / CONFIG_FILE).exists():
            config = read_json(folder / CONFIG_FILE)
            return read_peft(folder / CONFIG_FILE, config, net) if is_peft(config) else read_folder(folder, config)
        if (folder / MANIFEST_FILE).exists():
            return read_mindformers(folder)
        raise InputError(f"{folder} holds neither {CONFIG_FILE} nor {MANIFEST_FILE}; name the folder of an adapter.")
    if path.suffix == ".ckpt":
        return read_ckpt(path)
    return read_own_file(path) or _read_bare(path)


def _read_bare(path: Path) -> Adapter:
    """Read a safetensors file that holds nothing but tensors by our names."""
    tensors = host_tensors(read_tensor_file(path))
    return Adapter(path, None, {canonical_name(name): tensor for name, tensor in tensors.items()})
