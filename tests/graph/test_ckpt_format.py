import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mindpet.graph.ckpt_format import find_misfit


@pytest.fixture
def file(tmp_path):
    values = {
        "scalar": Tensor(1.5),
        "matrix": Tensor(np.ones((2, 150), np.float32)),
        "half": Tensor(np.ones(3, np.float16)),
        "brain": Tensor(np.ones(5), ms.bfloat16),
        "flag": Tensor(True),
        "count": Tensor(np.ones(2, np.int64)),
    }
    path = tmp_path / "whole.ckpt"
    ms.save_checkpoint([{"name": name, "data": value} for name, value in values.items()], str(path))
    return path


@pytest.mark.parametrize("options", [{}, {"crc_check": True}, {"append_dict": {"step_num": 3, "text": "abc"}}])
def test_a_whole_file_fits(tmp_path, options):
    path = tmp_path / "whole.ckpt"
    ms.save_checkpoint(ms.nn.Dense(3, 2), str(path), **options)
    assert find_misfit(path.read_bytes()) is None


def test_every_dtype_fits(file):
    assert find_misfit(file.read_bytes()) is None


def test_neighbours_of_one_name_are_parts_of_one_tensor(file):
    entry = _entry(b"matrix", (2, 150), b"Float32", bytes(600))
    assert find_misfit(entry + entry) is None
    assert find_misfit(entry + entry + entry) == "matrix"
    assert find_misfit(entry) == "matrix"


@pytest.mark.parametrize("shape", [(3, 150), (1, 150), (0, 150), (2,), ()])
def test_another_shape_does_not_fit(shape):
    assert find_misfit(_entry(b"matrix", shape, b"Float32", bytes(1200))) == "matrix"


def test_a_file_cut_off_in_a_field_is_no_protocol_buffer(file):
    whole = file.read_bytes()
    for length in (1, 30, len(whole) // 2, len(whole) - 1):
        with pytest.raises(ValueError, match="cut off"):
            find_misfit(whole[:length])


def _entry(name, shape, dtype, content):
    """Return one entry of a file, as the format's description says."""
    lengths = b"".join(b"\x08" + _number(length) for length in shape)
    tensor = lengths + b"\x12" + _number(len(dtype)) + dtype + b"\x1a" + _number(len(content)) + content
    entry = b"\x0a" + _number(len(name)) + name + b"\x12" + _number(len(tensor)) + tensor
    return b"\x0a" + _number(len(entry)) + entry


def _number(value):
    return bytes([value & 0x7F | 0x80, *_number(value >> 7)]) if value > 0x7F else bytes([value])
