import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindpet.storage.gguf import read_gguf
from mindpet.utils.exceptions import InputError
from tests.data.tiny_llama import write_gguf

FIELDS = {"a.number": 7, "a.share": 0.5, "a.text": "北京", "a.list": ["x", "", "é"], "a.numbers": [3, -1]}
KINDS = {"f16": Kind.F16, "q4_1": Kind.Q4_1, "q8_0": Kind.Q8_0}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    generator = np.random.default_rng(0)
    tensors = {name: generator.normal(size=(3, 64)).astype(np.float32) for name in ("f32", "f16", "q4_1", "q8_0")}
    tensors["cube"] = generator.normal(size=(2, 3, 5)).astype(np.float32)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", FIELDS, tensors, KINDS)


def test_fields_and_tensors_are_those_of_the_package(file):
    found = read_gguf(file)
    assert {key: found.fields[key] for key in FIELDS} == FIELDS
    reader = gguf.GGUFReader(file)
    assert set(found.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        values = found.tensors[tensor.name]
        assert values.dtype == np.float32 and values.flags.writeable and values.flags.owndata
        assert values.shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(values, gguf.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape))


def test_a_file_that_is_cut_anywhere_is_refused(file, tmp_path):
    data = file.read_bytes().rstrip(b"\0")
    for size in {*range(0, 600, 7), *range(600, len(data), 97), len(data) - 1}:
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(InputError, match=r"cut.gguf cannot be read as GGUF \(.*\): fetch the file again"):
            read_gguf(tmp_path / "cut.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 900), value=st.integers(0, 255), length=st.integers(1, 8))
def test_a_changed_byte_is_read_or_refused(file, tmp_path, place, value, length):
    data = bytearray(file.read_bytes())
    data[place : place + length] = bytes([value]) * length
    (tmp_path / "changed.gguf").write_bytes(data)
    try:
        found = read_gguf(tmp_path / "changed.gguf")
    except InputError as error:
        assert "changed.gguf" in str(error)
    else:
        assert all(values.dtype == np.float32 for values in found.tensors.values())


def changed(old, new):
    return lambda data: data.replace(old, new, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "it ends early"),
        (changed(b"GGUF", b"GGML"), "does not begin with the letters GGUF"),
        (changed(b"GGUF\x03", b"GGUF\x01"), "the version 1, and 2 and 3"),
        (changed(b"a.numbers", b"a.number\x80"), "a text in it cannot be read"),
        (changed(b"q4_1", b"q8_0"), "it holds 'q8_0' twice"),
        (changed(b"a.text\x08\0\0\0", b"a.text\x0f\0\0\0"), "unknown type 15"),
    ],
)
def test_what_is_wrong_is_named(file, tmp_path, change, message):
    (tmp_path / "bad.gguf").write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_gguf(tmp_path / "bad.gguf")


def test_a_kind_of_tensor_that_cannot_be_dequantised_is_named(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", {}, {"whole": np.arange(4, dtype=np.int32)})
    with pytest.raises(InputError, match="'whole' is of the type I32, which cannot be dequantised"):
        read_gguf(path)
    with pytest.raises(InputError, match="does not exist"):
        read_gguf(tmp_path / "missing.gguf")
