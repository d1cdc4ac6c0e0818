import base64
import pkgutil
import re

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

import mindpet
from mindpet.utils.exceptions import InputError
from tests.methods import config_of, small_bert
from tests.tuning.exchange import damage
from tests.tuning.exchange.networks import Stack, lora, snapshot, trained

A, B = "first.mindpet_delta_lora_a", "first.mindpet_delta_lora_b"


NANS = base64.b64encode(np.full(16, np.nan, "<f4").tobytes()).decode()


def cut(folder, name, share):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])


def change_config(**fields):
    return lambda folder: damage.write_config(folder, damage.read_config(folder) | fields)


def change_method(**fields):
    """Change the first method in both files, with all checksums."""
    return lambda folder: damage.edit_record(folder, lambda record: record["methods"][0].update(fields))


def change_tensors(edit, is_signed=True):
    return lambda folder: damage.edit_tensors(folder, edit, is_signed)


def change_record(edit):
    return lambda folder: damage.edit_record(folder, edit)


def set_value(name, value):
    def edit(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].ravel()[0] = value

    return edit


def drop_metadata(folder):
    damage.write_tensors(folder, damage.read_tensors(folder)[0], {})


def repeat_key(folder):
    text = (folder / damage.CONFIG).read_text()
    (folder / damage.CONFIG).write_text(text.replace("{", '{"format": "mindpet",', 1))


DAMAGES = {
    "no configuration": (lambda folder: (folder / damage.CONFIG).unlink(), "holds neither adapter_config.json nor"),
    "no tensors": (lambda folder: (folder / damage.TENSORS).unlink(), "does not exist"),
    "half a configuration": (lambda folder: cut(folder, damage.CONFIG, 0.5), "this is not JSON"),
    "half the tensors": (lambda folder: cut(folder, damage.TENSORS, 0.5), "is not the file that"),
    "an empty file": (lambda folder: cut(folder, damage.TENSORS, 0), "is not the file that"),
    "a repeated key": (repeat_key, "occurs twice"),
    "another format": (change_config(format="other"), "format: Input should be 'mindpet'"),
    "a later version": (change_config(format_version=2), "format_version: Input should be 1"),
    "an unknown key": (change_config(auto_mapping={"parent_library": "os"}), "auto_mapping: Extra inputs"),
    "no methods": (change_config(methods=[]), "methods: List should have at least 1 item"),
    "other methods": (
        change_config(methods=[{"method": "lora", "r": 2}]),
        "the methods are not those that the adapter was saved with",
    ),
    "no record": (drop_metadata, "holds no record of an adapter"),
    "an unknown method": (change_method(method="lorra"), r"the method 'lorra' is unknown.*Did you mean lora\?"),
    "a method that is code": (change_method(method="__import__('os')"), "is unknown"),
    "a method that is no name": (change_method(method=["lora"]), "is unknown"),
    "an unknown field": (change_method(rank=2), "LoraConfig has no field 'rank'; did you mean"),
    "a field of another type": (change_method(r="2"), "r: Input should be a valid integer"),
    "a negative rank": (change_method(r=-2), "r: Input should be greater than 0"),
    "another rank": (change_method(r=3), re.escape(f"{A} is float32 [2, 6], and the network has float32 [3, 6]")),
    "another scale": (change_method(lora_alpha=6.1), "gives outputs that differ by"),
    "other targets": (change_method(target_modules=["first"]), "is unknown to the network|disagree"),
    "a target that is not there": (change_method(target_modules=["first", "third"]), "'third' matches no"),
    "a record of a later version": (change_record(lambda record: record.update(version=2)), "version: Input should"),
    "more in the record": (change_record(lambda record: record.update(code="x")), "code: Extra inputs"),
    "less in the record": (change_record(lambda record: record.pop("base")), "base: Field required"),
    "no probe of a cell": (change_record(lambda record: record["cells"].pop("first")), "disagree on .* cell first"),
    "another probe": (change_record(lambda record: record["cells"]["first"].update(seed=5)), "first gives outputs"),
    "a probe of another shape": (
        change_record(lambda record: record["cells"]["first"]["inputs"]["x"].update(shape=[1 << 40, 6])),
        "first takes other inputs",
    ),
    "an output of another shape": (
        change_record(lambda record: record["cells"]["first"].update(shape=[2, 7])),
        re.escape("gives an output of shape (2, 8) and not (2, 7)"),
    ),
    "an output that is no base64": (
        change_record(lambda record: record["cells"]["first"].update(output="*")),
        "base64",
    ),
    "an output of NaN": (
        change_record(lambda record: record["cells"]["first"].update(output=NANS)),
        "first gives outputs that differ by nan",
    ),
    "a lost tensor": (change_tensors(lambda tensors: tensors.pop(A)), f"{A} is missing"),
    "a lost tensor that is listed": (change_tensors(lambda tensors: tensors.pop(A), False), f"{A} is missing"),
    "one tensor more": (
        change_tensors(lambda tensors: tensors.update({"first.mindpet_delta_lora_c": tensors[A]})),
        r"first.mindpet_delta_lora_c is unknown to the network \(nearest: first.mindpet_delta_lora_",
    ),
    "one tensor more than listed": (
        change_tensors(lambda tensors: tensors.update({"extra": tensors[A]}), False),
        "extra is not in the record",
    ),
    "a tensor of the base": (
        change_tensors(lambda tensors: tensors.update({"first.weight": np.zeros((8, 6), np.float32)})),
        "first.weight is a part of the base, and the network's has other values",
    ),
    "two tensors exchanged": (
        change_tensors(
            lambda tensors: tensors.update({A: tensors[B].T.copy()[:, :6], B: tensors[A].repeat(8, 0)[:8, :2]})
        ),
        "gives outputs that differ",
    ),
    "a turned tensor": (change_tensors(lambda tensors: tensors.update({A: tensors[A].T.copy()})), r"\[6, 2\], and"),
    "a flattened tensor": (change_tensors(lambda tensors: tensors.update({A: tensors[A].ravel()})), r"\[12\], and"),
    "a rotten bit": (change_tensors(set_value(A, 0.25), False), f"{A} differs from its checksum"),
    "another value": (change_tensors(set_value(A, 7.5)), "gives outputs that differ by"),
    "a NaN": (change_tensors(set_value(A, np.nan)), f"{A} holds NaN or infinite numbers"),
    "an infinite number": (change_tensors(set_value(B, -np.inf)), f"{B} holds NaN or infinite numbers"),
    "whole numbers": (change_tensors(lambda tensors: tensors.update({A: tensors[A].astype(np.int32)})), "is int32"),
    "double numbers": (
        change_tensors(lambda tensors: tensors.update({A: tensors[A].astype(np.float64)})),
        "is float64",
    ),
    "half numbers": (
        change_tensors(lambda tensors: tensors.update({A: tensors[A].astype(np.float16)})),
        re.escape(f"{A} is float16 [2, 6], and the network has float32 [2, 6]"),
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    mindpet.save_adapter(trained(Stack(), lora()), folder)
    return folder


@pytest.fixture(scope="module")
def networks():
    """A plain network and an attached one; as they must not change, all tests can have the same."""
    return {False: Stack(), True: trained(Stack(), lora(), seed=2)}


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy of a saved adapter, to be damaged."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


# What is attached already needs no targets.
ONLY_ON_PLAIN = {"other targets", "a target that is not there"}


@pytest.mark.parametrize(
    ("name", "is_attached"),
    [
        (name, is_attached)
        for name in DAMAGES
        for is_attached in (False, True)
        if not is_attached or name not in ONLY_ON_PLAIN
    ],
)
def test_a_damaged_adapter_is_refused_and_changes_nothing(adapter, networks, name, is_attached):
    edit, message = DAMAGES[name]
    edit(adapter)
    network = networks[is_attached]
    before = snapshot(network)
    with pytest.raises(InputError, match=None if is_attached else message) as refusal:
        mindpet.load_adapter(network, adapter)
    assert str(adapter) in str(refusal.value)
    assert snapshot(network) == before


def replaced(network, name, values):
    parameter = next(parameter for parameter in network.get_parameters() if parameter.name == name)
    parameter.set_data(Tensor(np.asarray(values, np.float32)))
    return network


BASES = {
    "other weights": (lambda: Stack(seed=5), r"trained on another base: first.bias differs; first.weight differs"),
    "one other number": (
        lambda: replaced(Stack(), "second.weight", nudged(Stack().second.weight)),
        "another base: second.weight differs",
    ),
    "a number that differs by rounding": (
        lambda: replaced(Stack(), "second.bias", np.nextafter(Stack().second.bias.asnumpy(), 9).astype(np.float32)),
        "another base: second.bias differs",
    ),
    "another activation": (lambda: Stack(activation="tanh"), "first gives outputs that differ by"),
    "another network": (small_bert, "the network has no parameter first.weight"),
}


def nudged(parameter):
    array = parameter.asnumpy().copy()
    array[-1, -1] += 1e-6
    return array


@pytest.mark.parametrize("name", BASES)
def test_another_base_is_refused_and_unchanged(saved, name):
    make, message = BASES[name]
    network = make()
    before = snapshot(network)
    with pytest.raises(InputError, match=message):
        mindpet.load_adapter(network, saved)
    assert snapshot(network) == before


def test_a_difference_outside_the_touched_tensors_is_seen_by_the_whole_network(tmp_path):
    mindpet.save_adapter(trained(small_bert(), config_of("lora", modules_to_save=["classifier"])), tmp_path / "adapter")
    network = small_bert()
    network.bert.encoder.layer[0].output.dense.weight.set_data(Tensor(np.zeros((8, 12), np.float32)))
    before = snapshot(network)
    with pytest.raises(InputError, match="the whole network gives outputs that differ by"):
        mindpet.load_adapter(network, tmp_path / "adapter")
    assert snapshot(network) == before


def test_a_new_head_that_was_not_saved_is_seen(tmp_path):
    config = mindpet.LoraConfig(r=2)
    mindpet.save_adapter(trained(small_bert(), config), tmp_path / "adapter")
    network = small_bert()
    network.classifier.weight.set_data(Tensor(np.random.default_rng(9).normal(size=(3, 8)).astype(np.float32)))
    with pytest.raises(InputError, match="such as a new head that was not in modules_to_save"):
        mindpet.load_adapter(network, tmp_path / "adapter")


ATTACHED = {
    "another method": (mindpet.AdapterConfig(target_modules=["first"]), "is for lora, and attached is adapter"),
    "one method more": ([lora(), mindpet.BitFitConfig()], "is for lora, and attached is lora, bitfit"),
    "another scale": (lora(lora_alpha=7), "lora with lora_alpha 6.0, and attached is 7.0"),
    "another rank": (lora(r=3), "lora with r 2, and attached is 3"),
    "fewer layers": (lora(target_modules=["first"]), "second.mindpet_delta_lora_a is unknown to the network"),
    "more layers": (lora(target_modules="all-linear", modules_to_save=[]), "head.mindpet_delta_lora_a is missing"),
    "another rank in one layer": (lora(rank_pattern={"first": 1}), "rank_pattern {}, and attached is {'first': 1}"),
}


@pytest.mark.parametrize("name", ATTACHED)
def test_what_is_attached_otherwise_is_refused_and_unchanged(saved, name):
    config, message = ATTACHED[name]
    network = trained(Stack(), config)
    before = snapshot(network)
    with pytest.raises(InputError, match=message):
        mindpet.load_adapter(network, saved)
    assert snapshot(network) == before


@pytest.mark.parametrize("failing", ["own.write_values", "load.repeat_probes", "load.has_effect"])
@pytest.mark.parametrize("is_attached", [False, True])
@pytest.mark.parametrize("failure", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_failure_half_way_is_undone(saved, networks, monkeypatch, failing, is_attached, failure):
    """Writing fails after a parameter is written; the old values can be written afterwards."""
    network = networks[is_attached]
    before = snapshot(network)
    path = f"mindpet.tuning.exchange.{failing}"
    function, calls = pkgutil.resolve_name(path), []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            return function(*arguments)
        if failing == "own.write_values":
            function([next(iter(arguments[0]))])
        raise failure

    monkeypatch.setattr(path, fail)
    with pytest.raises(type(failure)):
        mindpet.load_adapter(network, saved)
    assert snapshot(network) == before


def test_a_parameter_that_keeps_its_old_value_is_noticed(saved, monkeypatch):
    monkeypatch.setattr("mindpet.tuning.exchange.own.write_values", lambda changes: None)
    with pytest.raises(InputError, match="does not hold what was written into it"):
        mindpet.load_adapter(Stack(), saved)


def test_what_is_no_network_is_a_type_error(saved):
    with pytest.raises(TypeError, match="The network is a str"):
        mindpet.load_adapter("net", saved)
    with pytest.raises(TypeError, match="The network is a str"):
        mindpet.save_adapter("net", saved)


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "does not exist"), ("empty", "holds neither"), ("text", "safetensors")]
)
def test_what_is_no_adapter_is_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("x")
    with pytest.raises(InputError, match=f"{tmp_path / name}.*{message}"):
        mindpet.load_adapter(Stack(), tmp_path / name)


def test_a_live_optimizer_of_the_plain_network_is_refused(saved):
    network = Stack()
    optimizer = mindspore.nn.SGD(network.trainable_params(), 0.1)
    with pytest.raises(InputError, match="optimizer"):
        mindpet.load_adapter(network, saved)
    del optimizer
    mindpet.load_adapter(network, saved)
