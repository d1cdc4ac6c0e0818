import hashlib
import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindpet.graph import TrainableParamsCheckPoint, UnverifiedCheckpointWarning, load_trainable, newest_whole
from mindpet.utils.exceptions import InputError
from tests.graph.networks import LoraNetwork, run_context, set_trainable, trainable_values


@pytest.fixture
def saved(tmp_path):
    """A checkpoint in which every number is 1, and a network in which it is 0."""
    net = LoraNetwork()
    callback = TrainableParamsCheckPoint(str(tmp_path), "p")
    set_trainable(net, 1)
    callback.step_end(run_context(net, 1))
    set_trainable(net, 0)
    return net, tmp_path / "p-1_1.ckpt"


def sums_of(path):
    return path.with_name(path.name + ".sha256.json")


def assert_all(net, value):
    assert all((values == value).all() for values in trainable_values(net).values())


def rewrite(path, data):
    path.chmod(0o600)
    path.write_bytes(data)


def test_loading_keeps_the_parameter_objects(saved, recwarn):
    net, path = saved
    before = [id(parameter) for parameter in net.get_parameters()]
    load_trainable(net, str(path))
    assert_all(net, 1)
    assert [id(parameter) for parameter in net.get_parameters()] == before
    assert not [warning for warning in recwarn if warning.category is UnverifiedCheckpointWarning]


def test_a_compiled_network_sees_the_loaded_values(saved, mode):
    net, path = saved
    x = Tensor(np.ones((2, 4), np.float32))
    assert (net(x).asnumpy() == 0).all()
    load_trainable(net, path)
    assert (net(x).asnumpy() != 0).all()


def test_bfloat16_survives(tmp_path):
    net = nn.Cell()
    net.insert_param_to_cell("scale", Parameter(Tensor(np.array([1.5, 2.5]), ms.bfloat16), name="scale"))
    callback = TrainableParamsCheckPoint(str(tmp_path))
    callback.step_end(run_context(net, 1))
    net.scale.set_data(Tensor(np.zeros(2), ms.bfloat16))
    load_trainable(net, newest_whole(tmp_path))
    assert net.scale.dtype == ms.bfloat16
    assert net.scale.float().asnumpy().tolist() == [1.5, 2.5]


def test_several_files_give_the_parameters_together(saved, tmp_path):
    net, _ = saved
    set_trainable(net, 2)
    parts = [tmp_path / "matrices.ckpt", tmp_path / "head.ckpt"]
    for part, prefix in zip(parts, ("mindpet", "head"), strict=True):
        ms.save_checkpoint(net, str(part), choice_func=lambda name, prefix=prefix: name.startswith(prefix))
    set_trainable(net, 0)
    with pytest.raises(InputError, match=r"head\.bias is missing"):
        load_trainable(net, parts[:1])
    with pytest.raises(InputError, match="which was given before"):
        load_trainable(net, [*parts, parts[0]])
    assert_all(net, 0)
    with pytest.warns(UnverifiedCheckpointWarning) as caught:
        load_trainable(net, parts)
    assert len(caught) == 2
    assert_all(net, 2)


def test_names_of_old_files_are_understood(saved, tmp_path):
    net, _ = saved
    old = {"mindpet_delta_lora_a": "mindpet_delta_lora_A", "mindpet_delta_lora_b": "tk_delta_lora_B"}
    values = trainable_values(net)
    path = tmp_path / "old.ckpt"
    ms.save_checkpoint(
        [{"name": old.get(name, name), "data": Tensor(value + 3)} for name, value in values.items()], str(path)
    )
    with pytest.warns(UnverifiedCheckpointWarning):
        load_trainable(net, path)
    assert_all(net, 3)


OPTIMIZERS = {
    "AdamWeightDecay": lambda parameters: nn.AdamWeightDecay(parameters, [0.1, 0.2, 0.3]),
    "Adam in groups": lambda parameters: nn.Adam(
        [{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": [0.1, 0.2]}], 0.1, use_amsgrad=True
    ),
    "Momentum": lambda parameters: nn.Momentum(parameters, 0.1, 0.9),
    "SGD": lambda parameters: nn.SGD(parameters, 0.1, momentum=0.9),
    "Lamb": lambda parameters: nn.Lamb(parameters, 0.1),
    "AdaFactor": lambda parameters: nn.AdaFactor(parameters, 0.1, scale_parameter=False, relative_step=False),
    "RMSProp": lambda parameters: nn.RMSProp(parameters, 0.1, centered=True),
    "Adagrad": lambda parameters: nn.Adagrad(parameters),
    "FTRL": lambda parameters: nn.FTRL(parameters),
    "ASGD": lambda parameters: nn.ASGD(parameters),
}


def write_as_1_0_4(step, path):
    """Write what MindPet 1.0.4 wrote: whatever has a gradient in the whole training step, by old names."""
    old = {"mindpet_delta_lora_a": "mindpet_delta_lora_A", "mindpet_delta_lora_b": "mindpet_delta_lora_B"}
    names = {parameter.name: parameter.name for parameter in step.trainable_params()}
    for now, then in old.items():
        names = {name: written.replace(now, then) for name, written in names.items()}
    parameters = {parameter.name: parameter for parameter in step.trainable_params()}
    ms.save_checkpoint([{"name": names[name], "data": Tensor(parameters[name].asnumpy())} for name in names], str(path))
    return names


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizers_state_in_a_file_of_1_0_4_is_left_aside(tmp_path, optimizer):
    net = LoraNetwork()
    set_trainable(net, 5)
    inner = nn.WithLossCell(net, nn.MSELoss())
    scale = nn.DynamicLossScaleUpdateCell(1024, 2, 1000)
    step = nn.TrainOneStepWithLossScaleCell(inner, OPTIMIZERS[optimizer](net.trainable_params()), scale)
    names = write_as_1_0_4(step, tmp_path / "old.ckpt")
    assert {"global_step", "scale_sense", "current_iterator_step"} <= names.keys()
    assert len(names) > 2 * len(trainable_values(net))
    fresh = LoraNetwork()
    with pytest.warns(UnverifiedCheckpointWarning):
        load_trainable(fresh, tmp_path / "old.ckpt")
    assert_all(fresh, 5)


def test_state_of_a_parameter_is_left_aside_only_beside_it(saved, tmp_path):
    net, _ = saved
    values = {name: value + 1 for name, value in trainable_values(net).items()}
    path = tmp_path / "other.ckpt"
    for extra in ("adam_m.other.bias", "mean.head.bias", "adam_m.head", "learning_rates", "dense.bias"):
        content = values | {extra: np.ones(4, np.float32)}
        ms.save_checkpoint([{"name": name, "data": Tensor(value)} for name, value in content.items()], str(path))
        with pytest.raises(InputError, match=rf"{extra} is (unknown|frozen)"):
            load_trainable(net, path)
        assert_all(net, 0)


def test_a_parameter_named_like_state_is_a_parameter(tmp_path):
    net = nn.Cell()
    for name in ("bias", "moments.bias", "momentum"):
        net.insert_param_to_cell(
            name.replace(".", "_"), Parameter(Tensor(np.ones(2, np.float32)), name=name), check_name_contain_dot=False
        )
    content = [{"name": name, "data": Tensor(np.full(2, 7, np.float32))} for name in ("bias", "moments.bias")]
    ms.save_checkpoint(content, str(tmp_path / "two.ckpt"))
    with pytest.raises(InputError, match="momentum is missing"):
        load_trainable(net, tmp_path / "two.ckpt")
    content.append({"name": "momentum", "data": Tensor(np.full(2, 7, np.float32))})
    ms.save_checkpoint(content, str(tmp_path / "three.ckpt"))
    with pytest.warns(UnverifiedCheckpointWarning):
        load_trainable(net, tmp_path / "three.ckpt")
    assert [parameter.asnumpy().tolist() for parameter in net.get_parameters()] == [[7.0, 7.0]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("head.bias"), r"head\.bias is missing"),
        (lambda values: values.update(more=np.ones(1, np.float32)), "more is unknown to the network"),
        (lambda values: values.update({"dense.bias": np.ones(4, np.float32)}), r"dense\.bias is frozen"),
        (lambda values: values.update({"head.bias": np.ones(3, np.float32)}), r"head\.bias is \(3,\) Float32"),
        (lambda values: values.update({"head.bias": np.ones(2, np.float16)}), r"head\.bias is \(2,\) Float16"),
        (
            lambda values: values.update(more=values.pop("head.bias")),
            r"head\.bias is missing; more is unknown",
        ),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(saved, tmp_path, change, message):
    net, _ = saved
    values = {name: value + 1 for name, value in trainable_values(net).items()}
    change(values)
    path = tmp_path / "changed.ckpt"
    ms.save_checkpoint([{"name": name, "data": Tensor(value)} for name, value in values.items()], str(path))
    with pytest.raises(InputError, match=message):
        load_trainable(net, path)
    assert_all(net, 0)


def test_every_truncation_and_bit_flip_is_found(saved):
    net, path = saved
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0"]
    damaged += [bytes([*whole[:i], whole[i] ^ 1 << i % 8, *whole[i + 1 :]]) for i in range(len(whole))]
    for data in damaged:
        rewrite(path, data)
        with pytest.raises(InputError, match="damaged"):
            load_trainable(net, path)
        assert newest_whole(path.parent, "p") is None
    assert_all(net, 0)


def test_a_changed_tensor_is_found_behind_the_checksum_of_the_file(saved):
    net, path = saved
    whole = path.read_bytes()
    data = whole.replace(np.ones(2, np.float32).tobytes(), np.array([1, 2], np.float32).tobytes())
    assert data != whole
    rewrite(path, data)
    sums = json.loads(sums_of(path).read_text())
    sums["sha256"] = hashlib.sha256(data).hexdigest()
    sums_of(path).write_text(json.dumps(sums))
    with pytest.raises(InputError, match="differs from"):
        load_trainable(net, path)
    assert_all(net, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"size": 1}',
        '{"size": 1, "sha256": "", "appended": [[]], "tensors": {}}',
        "\0",
    ],
)
def test_unusable_checksums_are_an_error(saved, text):
    net, path = saved
    sums_of(path).write_text(text)
    with pytest.raises(InputError, match="sha256"):
        load_trainable(net, path)
    assert newest_whole(path.parent, "p") is None
    assert_all(net, 0)


def test_an_unreadable_file(saved, monkeypatch):
    net, path = saved
    opened = type(path).open

    def open_unless_forbidden(self, *arguments, **options):
        if self.suffix == ".ckpt":
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(type(path), "open", open_unless_forbidden)
    with pytest.raises(InputError, match="Permission denied"):
        load_trainable(net, path)
    assert newest_whole(path.parent, "p") is None
    assert_all(net, 0)


def test_without_checksums_a_file_is_loaded_as_unverified_but_never_chosen(saved):
    net, path = saved
    sums_of(path).unlink()
    assert newest_whole(path.parent, "p") is None
    with pytest.warns(UnverifiedCheckpointWarning, match=path.name) as caught:
        load_trainable(net, path)
    assert caught[0].filename == __file__
    assert_all(net, 1)


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"\x0a\xff\xff\xff\xff\xff", bytes(100)])
def test_a_file_that_is_no_checkpoint(saved, data):
    net, path = saved
    sums_of(path).unlink()
    rewrite(path, data)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_trainable(net, path)
    assert_all(net, 0)


def test_an_entry_that_is_no_tensor(saved):
    net, path = saved
    sums_of(path).unlink()
    entry = path.read_bytes().index(b"head.bias") + len(b"head.bias")
    damaged = bytearray(path.read_bytes())
    damaged[entry] ^= 0x40  # The entry's kind: MindSpore gives a list for anything else than a tensor.
    rewrite(path, bytes(damaged))
    with pytest.raises(InputError, match=r"head\.bias is no tensor"):
        load_trainable(net, path)
    assert_all(net, 0)


def test_bad_arguments(saved, tmp_path):
    net, path = saved
    for model, files, error in [
        (None, path, TypeError),
        (net, None, TypeError),
        (net, [None], TypeError),
        (net, {path}, TypeError),
        (net, [], InputError),
        (net, tmp_path / "none.ckpt", InputError),
        (net, tmp_path, InputError),
    ]:
        with pytest.raises(error) as caught:
            load_trainable(model, files)
        assert caught.type is error
    frozen = nn.Dense(1, 1)
    for parameter in frozen.get_parameters():
        parameter.requires_grad = False
    with pytest.raises(InputError, match="no trainable parameter"):
        load_trainable(frozen, path)
    with pytest.raises(InputError):
        newest_whole(tmp_path / "none")
    with pytest.raises(InputError):
        newest_whole(path)


def test_newest_means_run_then_epoch_then_step_and_skips_the_damaged(saved):
    _, path = saved
    names = ["p-1_1", "p-1_2", "p-1_10", "p-2_1", "p-10_1", "p_1-1_1", "p_2-1_1", "p_10-1_1"]
    for name in names[1:]:
        for suffix in (".ckpt", ".ckpt.sha256.json"):
            (path.parent / (name + suffix)).write_bytes((path.parent / ("p-1_1" + suffix)).read_bytes())
    (path.parent / "pp-9_9.ckpt").write_bytes(b"")
    (path.parent / "p_a-9_9.ckpt").write_bytes(b"")
    for name in reversed(names):
        assert newest_whole(path.parent, "p") == path.parent / f"{name}.ckpt"
        rewrite(path.parent / f"{name}.ckpt", b"damaged")
    assert newest_whole(path.parent, "p") is None
    assert newest_whole(path.parent, "absent") is None
