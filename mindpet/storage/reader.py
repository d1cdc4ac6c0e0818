"""The one strict door for every file from outside.

Whatever is wrong with a file becomes an `InputError` that names the file, the line where there is one, and what to do.
"""

from mindpet.storage.tensors import TensorFile, read_safetensors, read_sharded_safetensors, read_tensor_file
from mindpet.storage.text import (
    is_folder,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
    read_yaml,
    require_file,
    require_folder,
)

__all__ = [
    "TensorFile",
    "is_folder",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_json_lines",
    "read_safetensors",
    "read_sharded_safetensors",
    "read_tensor_file",
    "read_text",
    "read_yaml",
    "require_file",
    "require_folder",
]
