import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from mindpet.storage.reader import read_safetensors, read_sharded_safetensors, read_tensor_file
from mindpet.storage.tensors import write_safetensors
from mindpet.utils.exceptions import InputError

F32_PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw_file(folder, header, values=b"\0" * 8):
    """Write a safetensors file with a header of our own, text or object."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
def test_every_numpy_dtype_comes_back_as_it_was(tmp_path, dtype):
    generator = np.random.default_rng(0)
    tensors = {name: np.array(np.abs(generator.normal(size=shape)) * 9, dtype) for name, shape in shapes().items()}
    save_file(tensors, tmp_path / "file")
    found = read_safetensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype
        assert found[name].flags.writeable
        assert found[name].flags.writeable
        np.testing.assert_array_equal(found[name], expected)


def shapes():
    return {"matrix": (3, 5), "scalar": (), "empty": (0, 4), "vector": (7,)}


def test_every_bfloat16_value_becomes_the_same_float32(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    header = {"x": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 1 << 17]}, "__metadata__": {"a": "b"}}
    found = read_safetensors(raw_file(tmp_path, header, bits.tobytes()))["x"]
    assert found.dtype == np.float32
    assert found.shape == (256, 256)
    np.testing.assert_array_equal(found.reshape(-1).view(np.uint32), bits.astype(np.uint32) << 16)


def test_bfloat16_is_known_beside_the_dtype_that_mindspore_brings(tmp_path):
    import mindspore

    assert mindspore.Tensor([1.5], mindspore.bfloat16).asnumpy().dtype.name == "bfloat16"
    test_every_bfloat16_value_becomes_the_same_float32(tmp_path)


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        ("{ ", b"", "cannot be read as safetensors"),
        ("[]", b"", "cannot be read as safetensors"),
        ('{"\xff": 1}', b"", "cannot be read as safetensors"),
        ('{"x": %s, "x": %s}' % ((json.dumps(F32_PAIR),) * 2), b"\0" * 8, "'x' occurs twice"),
        ({"x": 3}, b"", "cannot be read as safetensors"),
        ({"x": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "shape": [-2]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "shape": [2.0]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "shape": 2}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "data_offsets": [0, 4, 8]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, b"\0" * 2, "'x' as F8_E4M3; accepted"),
        ({"x": {**F32_PAIR, "dtype": ["F32"]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "shape": [3]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": {**F32_PAIR, "shape": [1 << 62, 2]}}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": F32_PAIR, "y": F32_PAIR}, b"\0" * 8, "cannot be read as safetensors"),
        ({"x": F32_PAIR, "y": {**F32_PAIR, "data_offsets": [4, 12]}}, b"\0" * 12, "cannot be read as safetensors"),
        ({"x": F32_PAIR, "y": {**F32_PAIR, "data_offsets": [12, 20]}}, b"\0" * 20, "cannot be read as safetensors"),
        ({"x": F32_PAIR}, b"\0" * 7, "cannot be read as safetensors"),
        ({"x": F32_PAIR}, b"\0" * 9, "cannot be read as safetensors"),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, header, values, message):
    path = raw_file(tmp_path, header, values)
    with pytest.raises(InputError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    whole = save({"a": np.ones((2, 3), np.float32), "b": np.arange(3)})
    path = tmp_path / "file"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="fetch it again"):
            read_safetensors(path)
    path.write_bytes(whole)
    assert read_safetensors(path).keys() == {"a", "b"}


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = raw_file(tmp_path, {"x": F32_PAIR})
    read = np.fromfile

    def cut_and_read(*arguments):
        os.truncate(path, path.stat().st_size - 1)
        return read(*arguments)

    monkeypatch.setattr(np, "fromfile", cut_and_read)
    with pytest.raises(InputError, match=f"{path} ended while 'x' was read.*fetch it again"):
        read_safetensors(path)


def sharded(folder, **shard_of):
    for shard in set(shard_of.values()):
        tensors = {
            name: np.full(2, number, np.float32) for number, name in enumerate(shard_of) if shard_of[name] == shard
        }
        save_file(tensors, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


def test_shards_are_read_together(tmp_path):
    sharded(tmp_path, a="1.safetensors", b="2.safetensors", c="1.safetensors")
    found = read_sharded_safetensors(tmp_path)
    assert {name: values[0] for name, values in found.items()} == {"a": 0, "b": 1, "c": 2}


def test_the_whole_file_comes_before_the_index(tmp_path):
    sharded(tmp_path, a="1.safetensors")
    save_file({"whole": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    assert read_sharded_safetensors(tmp_path).keys() == {"whole"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "2.safetensors").unlink(), "2.safetensors is missing"),
        (lambda folder: (folder / "2.safetensors").write_bytes(b"x"), "2.safetensors cannot be read as safetensors"),
        (lambda folder: save_file({}, folder / "2.safetensors"), "2.safetensors lacks 'b'"),
        (
            lambda folder: save_file(dict.fromkeys("bd", np.ones(1)), folder / "2.safetensors"),
            "2.safetensors holds 'd', which .* does not place there",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "has no `weight_map`"),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../x.safetensors"}}'
            ),
            "expected is the name of a .safetensors file in the same folder",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").unlink(),
            "holds no weights; expected model.safetensors",
        ),
    ],
)
def test_incomplete_shards_are_refused(tmp_path, change, message):
    sharded(tmp_path, a="1.safetensors", b="2.safetensors")
    change(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_sharded_safetensors(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_pickle_is_not_opened_but_named(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"only pytorch_model.bin.*expected model.safetensors.*save the model as safetensors"
    ):
        read_sharded_safetensors(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="is not an existing folder"):
        read_sharded_safetensors(tmp_path / "missing")


READING = """
import sys
from pathlib import Path
from mindpet.storage.reader import read_safetensors

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

before = peak()
tensors = read_safetensors(sys.argv[1])
print((peak() - before) / sum(values.nbytes for values in tensors.values()))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_process_grows_by_what_it_reads_and_no_more(tmp_path, dtype):
    tensors = {str(number): np.ones(1 << 20, np.float32) for number in range(16)}
    write_safetensors(tmp_path / "file", tensors, dict.fromkeys(tensors, dtype), {})
    arguments = [sys.executable, "-c", READING, tmp_path / "file"]
    grown = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert 0.9 < float(grown) < 1.15


def test_what_is_written_comes_back_with_its_dtypes_and_texts(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint32) << 16
    tensors = {
        "half": bits.view(np.float32)[np.isfinite(bits.view(np.float32))],
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "scalar": np.array(1.5, np.float32),
        "counts": np.array([1, 2], np.int64),
        "small": np.array([0.1], np.float16),
    }
    dtypes = {name: values.dtype.name for name, values in tensors.items()} | {"half": "bfloat16"}
    write_safetensors(tmp_path / "file", tensors, dtypes, {"名": "值"})
    found = read_tensor_file(tmp_path / "file")
    assert (found.dtypes, found.metadata) == (dtypes, {"名": "值"})
    for name, values in tensors.items():
        assert found.tensors[name].shape == values.shape
        np.testing.assert_array_equal(found.tensors[name], values)
    assert (tmp_path / "file").stat().st_size < 2 * (1 << 16) + 1000


def test_the_same_content_gives_the_same_file(tmp_path):
    tensors = {name: np.full(3, number, np.float32) for number, name in enumerate("cab")}
    for file in ("one", "two"):
        write_safetensors(tmp_path / file, tensors, dict.fromkeys(tensors, "float32"), {"text": "x"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_file_without_texts_has_none(tmp_path):
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "file")
    assert read_tensor_file(tmp_path / "file").metadata == {}
