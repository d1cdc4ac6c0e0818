import hashlib

import mindspore
import ml_dtypes
import numpy as np
import pytest
from mindspore import Parameter, Tensor

import mindpet
from mindpet.tuning.exchange.values import HostTensor, digest, find_rounding, fingerprint, read
from mindpet.tuning.values import write_values
from mindpet.utils.exceptions import InputError
from tests.tuning.exchange.networks import Stack, adapter_values, lora, snapshot, trained

VALUES = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def as_parameter(values, dtype):
    return Parameter(Tensor(values, mindspore.float32).astype(getattr(mindspore, dtype)), name="x")


def rounded(values, dtype):
    return values.astype(DTYPES[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_is_the_sha256_of_the_bytes(dtype):
    parameter = as_parameter(VALUES, dtype)
    expected = hashlib.sha256(VALUES.astype(DTYPES[dtype]).tobytes()).hexdigest()
    assert digest(read(parameter)) == expected == hashlib.sha256(parameter.get_bytes()).hexdigest()
    assert digest(HostTensor(VALUES, "float32"), dtype) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_can_be_written_back(dtype):
    source, target = as_parameter(VALUES, dtype), as_parameter(np.zeros_like(VALUES), dtype)
    write_values([(target, read(source).values)])
    assert target.get_bytes() == source.get_bytes()
    assert target.dtype == source.dtype


@pytest.mark.parametrize(
    ("saved", "found", "expected"),
    [
        ("float32", ("float32",), "float32"),
        ("float32", ("float16",), "float16"),
        ("float32", ("bfloat16",), "bfloat16"),
        ("float32", ("float16", "float32"), "float16"),
        ("float32", ("bfloat16", "float32"), "bfloat16"),
        ("float16", ("float16",), "float16"),
        ("float16", ("float16", "float32"), "float32"),
        ("float16", ("float16", "bfloat16"), "bfloat16"),
        ("bfloat16", ("bfloat16", "float32"), "float32"),
        ("bfloat16", ("float16",), None),  # never went through bfloat16
        ("float32", ("float16", "bfloat16"), None),  # rounded twice
    ],
)
def test_a_cast_tensor_is_recognised(saved, found, expected):
    recorded = fingerprint(read(as_parameter(VALUES, saved)))
    values = VALUES if found[0] != saved and saved == "bfloat16" else rounded(VALUES, saved)
    for dtype in found:
        values = rounded(values, dtype)
    assert find_rounding(read(as_parameter(values, found[-1])), recorded) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_tensor_is_not_taken_for_a_cast_one(dtype):
    recorded = fingerprint(HostTensor(VALUES, "float32"))
    other = rounded(VALUES, dtype)
    other[3, 4] = np.nextafter(other[3, 4], np.float32(9)) if dtype == "float32" else other[3, 4] * 1.25
    assert find_rounding(HostTensor(other, dtype), recorded) is None
    assert find_rounding(HostTensor(VALUES.T, "float32"), recorded) is None


def test_values_that_a_dtype_cannot_hold_are_infinite_without_a_warning(recwarn):
    huge = HostTensor(np.array([1e30, 1], np.float32), "float32")
    assert fingerprint(huge).sha256["float16"] == digest(HostTensor(np.array([np.inf, 1], np.float16), "float16"))
    assert not recwarn


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Adapters with and without a head, of a float32 base."""
    folder = tmp_path_factory.mktemp("adapters")
    mindpet.save_adapter(trained(Stack(), lora()), folder / "head")
    mindpet.save_adapter(trained(Stack(), lora(modules_to_save=[])), folder / "plain")
    return folder


def test_a_base_cast_to_float16_is_reported_and_judged_as_such(adapters):
    network = Stack(dtype=mindspore.float16)
    report = mindpet.load_adapter(network, adapters / "head")
    assert report.rounded_to == ("float16",)
    assert "the base was cast to float16" in str(report)
    assert report.outcome.tolerance == 2**-8
    assert 0 < report.outcome.difference <= 2**-8
    assert network.head.weight.dtype == mindspore.float16  # trained with it, and cast along with the base
    assert network.first.mindpet_delta_lora_a.dtype == mindspore.float32


def test_a_base_cast_to_bfloat16_is_reported_and_judged_as_such(adapters):
    network = Stack(dtype=mindspore.bfloat16)
    report = mindpet.load_adapter(network, adapters / "plain", compute_dtype=mindspore.float32)
    assert report.rounded_to == ("bfloat16",)
    assert report.outcome.tolerance == 2**-5
    assert 0 < report.outcome.difference <= 2**-5


def test_a_base_that_went_through_float16_is_reported(adapters):
    network = Stack()
    for parameter in network.get_parameters():
        parameter.set_data(parameter.astype(mindspore.float16).astype(mindspore.float32))
    report = mindpet.load_adapter(network, adapters / "plain")
    assert report.rounded_to == ("float16",)
    assert 2e-6 < report.outcome.difference <= report.outcome.tolerance == 2**-8


def test_another_base_in_float16_is_refused(adapters):
    network = Stack(seed=1, dtype=mindspore.float16)
    before = snapshot(network)
    with pytest.raises(InputError, match=r"was trained on another base: first.bias differs"):
        mindpet.load_adapter(network, adapters / "head")
    assert snapshot(network) == before


def test_a_base_that_this_device_cannot_compute_is_refused(adapters):
    network = Stack(dtype=mindspore.bfloat16)
    if mindspore.get_context("device_target") != "CPU":
        pytest.skip("only a CPU lacks bfloat16 products")
    before = snapshot(network)
    with pytest.raises(InputError, match=r"first cannot be run here \(.*\); attach with a compute_dtype that"):
        mindpet.load_adapter(network, adapters / "plain")
    assert snapshot(network) == before


@pytest.mark.parametrize("dtype", [mindspore.float16, mindspore.bfloat16])
def test_an_adapter_of_a_narrow_base_comes_back(tmp_path, dtype):
    options = {"compute_dtype": mindspore.float32} if dtype == mindspore.bfloat16 else {}
    before = trained(Stack(dtype=dtype), lora(modules_to_save=[]), **options)
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = Stack(dtype=dtype)
    report = mindpet.load_adapter(after, tmp_path / "adapter", **options)
    assert adapter_values(after) == adapter_values(before)
    assert report.rounded_to == ()
    assert report.outcome.difference == 0


def test_a_trained_part_in_bfloat16_is_saved_in_bfloat16(tmp_path):
    from safetensors import safe_open

    network = trained(Stack(), lora())
    for parameter in (network.second.mindpet_delta_lora_a, network.second.mindpet_delta_lora_b):
        parameter.set_dtype(mindspore.bfloat16)
    mindpet.save_adapter(network, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="numpy") as file:
        assert file.get_slice("second.mindpet_delta_lora_a").get_dtype() == "BF16"
    with pytest.raises(InputError, match=r"second.mindpet_delta_lora_a is bfloat16 .* and the network has float32"):
        mindpet.load_adapter(Stack(), tmp_path / "adapter")
    before = adapter_values(network)
    mindpet.load_adapter(network, tmp_path / "adapter")
    assert adapter_values(network) == before
