import hashlib
import json
import resource
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import dataset, nn
from mindspore.train import CheckpointConfig, Model, ModelCheckpoint

from mindpet.graph import TrainableParamsCheckPoint, load_trainable, newest_whole, staged_checkpoint
from mindpet.utils.exceptions import AbsolutePathError, InputError, LinkPathError
from tests.graph.networks import LORA_NAMES, LoraNetwork, run_context, set_trainable, trainable_values

KEY = b"0123456789abcdef"


def make_data():
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=(12, 4)).astype(np.float32), "y": rng.integers(0, 2, 12).astype(np.int32)}
    return dataset.NumpySlicesDataset(columns, shuffle=False).batch(4)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def checkpoints_in(folder):
    return [name for name in names_in(folder) if name.endswith(".ckpt")]


def run_steps(callback, network, steps, batch_num=10):
    """Go through a training loop in which step n sets every trainable number to n."""
    for step in range(1, steps + 1):
        set_trainable(network, step)
        callback.step_end(run_context(network, step, (step - 1) // batch_num + 1, batch_num))
    callback.end(run_context(network, steps, (steps - 1) // batch_num + 1, batch_num))


def test_training_writes_only_the_trainable_parameters(tmp_path, mode):
    net = LoraNetwork()
    optimizer = nn.AdamWeightDecay(net.trainable_params(), 0.1)
    model = Model(net, nn.CrossEntropyLoss(), optimizer, metrics={"loss"})
    callback = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(keep_checkpoint_max=2))
    assert isinstance(callback, ModelCheckpoint)
    assert callback.latest_ckpt_file_name == ""
    data = make_data()
    model.train(2, data, callbacks=[callback], dataset_sink_mode=False)
    assert checkpoints_in(tmp_path) == ["DELTA_CKP-2_2.ckpt", "DELTA_CKP-2_3.ckpt"]
    assert callback.latest_ckpt_file_name == str(tmp_path / "DELTA_CKP-2_3.ckpt")
    content = ms.load_checkpoint(callback.latest_ckpt_file_name)
    assert content.keys() == LORA_NAMES
    for name, value in trainable_values(net).items():
        np.testing.assert_array_equal(content[name].asnumpy(), value)
    model.eval(data, callbacks=[callback], dataset_sink_mode=False)
    model.train(1, data, callbacks=[callback], dataset_sink_mode=False)
    assert callback.latest_ckpt_file_name == str(tmp_path / "DELTA_CKP_1-1_3.ckpt")


def test_model_fit_saves_in_training_and_not_in_evaluation(tmp_path):
    net = LoraNetwork()
    model = Model(net, nn.CrossEntropyLoss(), nn.SGD(net.trainable_params(), 0.1), metrics={"loss"})
    callback = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(save_checkpoint_steps=2))
    model.fit(2, make_data(), make_data(), callbacks=[callback], dataset_sink_mode=False)
    assert checkpoints_in(tmp_path) == ["DELTA_CKP-1_2.ckpt", "DELTA_CKP-2_1.ckpt", "DELTA_CKP-2_3.ckpt"]


def with_loss_scale(net, optimizer):
    loss_net = nn.WithLossCell(net, nn.CrossEntropyLoss())
    return nn.TrainOneStepWithLossScaleCell(loss_net, optimizer, nn.DynamicLossScaleUpdateCell(1024.0, 2, 10))


class StepWithAWeight(nn.Cell):
    """A training step that owns one of the weights itself, beside a counter."""

    def __init__(self, net, optimizer, weight):
        super().__init__(auto_prefix=False)
        self.net, self.optimizer, self.weight = net, optimizer, weight
        self.counter = ms.Parameter(ms.Tensor(0.0), name="counter")


@pytest.mark.parametrize("kind", ["alone", "step", "loss scale", "own step"])
def test_what_a_training_step_adds_is_not_written(tmp_path, kind):
    net = LoraNetwork()
    weight = ms.Parameter(ms.Tensor(np.ones(2, np.float32)), name="weight")
    optimizer = nn.Adam([*net.trainable_params(), weight] if kind == "own step" else net.trainable_params())
    network = {
        "alone": lambda: net,
        "step": lambda: nn.TrainOneStepCell(nn.WithLossCell(net, nn.CrossEntropyLoss()), optimizer),
        "loss scale": lambda: with_loss_scale(net, optimizer),
        "own step": lambda: StepWithAWeight(net, optimizer, weight),
    }[kind]()
    callback = TrainableParamsCheckPoint(str(tmp_path))
    callback.step_end(run_context(network, 1))
    expected = LORA_NAMES | ({"weight"} if kind == "own step" else set())
    assert ms.load_checkpoint(callback.latest_ckpt_file_name).keys() == expected


@pytest.mark.parametrize(
    ("options", "steps", "kept"),
    [
        ({}, 7, ["3", "4", "5", "6", "7"]),
        ({"save_checkpoint_steps": 3}, 7, ["3", "6", "7"]),
        ({"save_checkpoint_steps": 3, "keep_checkpoint_max": 2}, 6, ["3", "6"]),
        ({"save_checkpoint_steps": 100, "keep_checkpoint_max": 1}, 4, ["4"]),
        ({"keep_checkpoint_max": 1}, 4, ["4"]),
        ({"keep_checkpoint_max": 0, "save_checkpoint_steps": 1}, 4, ["4"]),
        ({"save_checkpoint_steps": 0, "save_checkpoint_seconds": 25}, 8, ["3", "6", "8"]),
        ({"keep_checkpoint_max": 0, "keep_checkpoint_per_n_minutes": 1}, 14, ["1", "6", "11", "14"]),
        ({"keep_checkpoint_max": 2, "async_save": True}, 4, ["3", "4"]),
        ({"keep_checkpoint_max": 2, "integrated_save": False, "crc_check": True}, 3, ["2", "3"]),
    ],
)
def test_when_to_save_and_what_to_keep(tmp_path, monkeypatch, options, steps, kept):
    now = [0.0]
    monkeypatch.setattr(staged_checkpoint.time, "monotonic", lambda: now[0])
    net = LoraNetwork()
    callback = TrainableParamsCheckPoint(str(tmp_path), "p", CheckpointConfig(**options))
    for step in range(1, steps + 1):
        now[0] += 10
        set_trainable(net, step)
        callback.step_end(run_context(net, step, 1, 100))
    callback.end(run_context(net, steps, 1, 100))
    assert checkpoints_in(tmp_path) == sorted(f"p-1_{step}.ckpt" for step in kept)
    assert names_in(tmp_path) == sorted(
        name for step in kept for name in (f"p-1_{step}.ckpt", f"p-1_{step}.ckpt.sha256.json")
    )
    for step in kept:
        content = ms.load_checkpoint(str(tmp_path / f"p-1_{step}.ckpt"))
        assert all((content[name].asnumpy() == float(step)).all() for name in LORA_NAMES)


@pytest.mark.parametrize("async_save", [False, True])
def test_append_info(tmp_path, async_save):
    net = LoraNetwork()
    info = ["epoch_num", "step_num", {"rate": 0.5, "note": "hello", "state": ms.Tensor([1.0, 2.0]), "step_num": 40}]
    config = CheckpointConfig(append_info=info, async_save=async_save)
    callback = TrainableParamsCheckPoint(str(tmp_path), config=config)
    run_steps(callback, net, 3, batch_num=2)
    content = ms.load_checkpoint(callback.latest_ckpt_file_name)
    assert callback.latest_ckpt_file_name.endswith("-2_1.ckpt")
    assert content.keys() == LORA_NAMES | {"epoch_num", "step_num", "rate", "note", "state"}
    assert (int(content["epoch_num"]), int(content["step_num"]), content["note"]) == (2, 43, "hello")
    set_trainable(net, 0)
    load_trainable(net, callback.latest_ckpt_file_name)
    assert (net.head.bias.asnumpy() == 3).all()


@pytest.mark.parametrize("enc_mode", ["AES-GCM", "AES-CBC", "SM4-CBC"])
def test_encryption(tmp_path, enc_mode):
    net = LoraNetwork()
    config = CheckpointConfig(enc_key=KEY, enc_mode=enc_mode, keep_checkpoint_max=1)
    run_steps(TrainableParamsCheckPoint(str(tmp_path), config=config), net, 2)
    newest = newest_whole(tmp_path)
    assert newest == tmp_path / "DELTA_CKP-1_2.ckpt"
    set_trainable(net, 0)
    with pytest.raises(InputError):
        load_trainable(net, newest)
    with pytest.raises(InputError):
        load_trainable(net, newest, dec_key=b"another key 16by", dec_mode=enc_mode)
    assert (net.head.bias.asnumpy() == 0).all()
    load_trainable(net, newest, dec_key=KEY, dec_mode=enc_mode)
    assert (net.head.bias.asnumpy() == 2).all()


def test_saved_network_is_the_one_that_is_saved(tmp_path):
    saved, trained = LoraNetwork(), nn.Dense(1, 1)
    callback = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(saved_network=saved))
    callback.step_end(run_context(trained, 1))
    assert ms.load_checkpoint(callback.latest_ckpt_file_name).keys() == LORA_NAMES


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"async_save": "process"}, "forked"),
        ({"exception_save": True}, "straight to the final name"),
        ({"remove_redundancy": True}, "several processes"),
        ({"incremental": True}, "earlier"),
        ({"crc_check": True, "enc_key": b"0" * 16}, "cannot read back"),
        ({"format": "safetensors"}, "safetensors"),
        ({"save_checkpoint_steps": 0, "save_checkpoint_seconds": 0}, "nothing would ever be saved"),
    ],
)
def test_an_unsafe_configuration_is_refused_with_the_reason(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        TrainableParamsCheckPoint(str(tmp_path / "new"), config=CheckpointConfig(**options))
    assert names_in(tmp_path) == []


def test_sharded_parameters_are_not_saved_asynchronously(tmp_path):
    net = LoraNetwork()
    net.head.weight.sliced = True
    callback = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(async_save=True))
    with pytest.raises(ValueError, match=r"sharded parameters \(head\.weight\)"):
        callback.step_end(run_context(net, 1))


def test_bad_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = tmp_path / "real"
    (real / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "file").write_text("")
    for arguments, error in [
        ((None,), ValueError),
        (("",), ValueError),
        ((3,), TypeError),
        (("relative",), AbsolutePathError),
        ((str(tmp_path / "link"),), LinkPathError),
        ((str(tmp_path / "link") + "/",), LinkPathError),
        ((str(tmp_path / "link" / "below"),), LinkPathError),
        ((str(tmp_path / "link" / ".." / "real"),), LinkPathError),
        ((str(tmp_path / "link" / "new"),), LinkPathError),
        ((str(tmp_path / "file"),), InputError),
        ((str(tmp_path / "file" / "below"),), InputError),
        ((str(tmp_path / ("x" * 300)),), InputError),
        ((str(real), "a/b"), ValueError),
        ((str(real), ""), ValueError),
        ((str(real), None), ValueError),
        ((str(real), "p", {}), TypeError),
        ((str(real), "p", CheckpointConfig), TypeError),
    ]:
        with pytest.raises(error) as caught:
            TrainableParamsCheckPoint(*arguments)
        assert caught.type is error, arguments
    assert names_in(tmp_path) == ["file", "link", "real"]
    assert names_in(real) == ["below"]


def test_a_further_run_in_the_folder_gets_a_number(tmp_path):
    net = LoraNetwork()
    config = CheckpointConfig(keep_checkpoint_max=1)
    for _ in range(3):
        run_steps(TrainableParamsCheckPoint(str(tmp_path), "p", config), net, 2)
    run_steps(TrainableParamsCheckPoint(str(tmp_path), "p_other", config), net, 2)
    assert checkpoints_in(tmp_path) == ["p-1_2.ckpt", "p_1-1_2.ckpt", "p_2-1_2.ckpt", "p_other-1_2.ckpt"]
    assert newest_whole(tmp_path, "p") == tmp_path / "p_2-1_2.ckpt"
    reference = ModelCheckpoint("p", str(tmp_path))
    reference.step_end(run_context(net, 1))
    assert reference.latest_ckpt_file_name.endswith("p_3-1_1.ckpt")


def test_one_callback_in_two_loops_and_with_repeated_names(tmp_path):
    net = LoraNetwork()
    callback = TrainableParamsCheckPoint(str(tmp_path), "p", CheckpointConfig(keep_checkpoint_max=1))
    run_steps(callback, net, 3)
    run_steps(callback, net, 2)
    assert checkpoints_in(tmp_path) == ["p-1_3.ckpt", "p_1-1_2.ckpt"]
    callback = TrainableParamsCheckPoint(str(tmp_path), "q", CheckpointConfig(keep_checkpoint_max=1))
    for step in (1, 2):
        callback.step_end(run_context(net, step, epoch=1, batch_num=1))
    assert checkpoints_in(tmp_path)[-1:] == ["q_1-1_1.ckpt"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    keep = ["notes.txt", "other-1_1.ckpt.sha256.json", "p-1_1.ckpt", "p-1_1.ckpt.sha256.json", "p-x.sha256.json"]
    for name in [*keep, "p-1_2.ckpt.sha256.json", "p_4-1_2.ckpt.sha256.json"]:
        (tmp_path / name).write_text("")
    (tmp_path / ".p-staging-abc").mkdir()
    (tmp_path / ".p-staging-abc" / "p-1_2.ckpt").write_text("")
    (tmp_path / ".other-staging-abc").mkdir()
    TrainableParamsCheckPoint(str(tmp_path), "p")
    assert names_in(tmp_path) == sorted([*keep, ".other-staging-abc"])


@pytest.mark.parametrize("limit", [0, 40, 300])
@pytest.mark.parametrize("async_save", [False, True])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, limit, async_save):
    net = LoraNetwork()
    config = CheckpointConfig(keep_checkpoint_max=1, async_save=async_save)
    callback = TrainableParamsCheckPoint(str(tmp_path), config=config)
    callback.step_end(run_context(net, 1))
    callback.end(run_context(net, 1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            callback.end(run_context(net, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert callback.latest_ckpt_file_name == str(tmp_path / "DELTA_CKP-1_1.ckpt")


def test_nothing_to_train_is_refused_before_training(tmp_path):
    net = LoraNetwork()
    for parameter in net.get_parameters():
        parameter.requires_grad = False
    callback = TrainableParamsCheckPoint(str(tmp_path))
    with pytest.raises(InputError, match="no trainable parameter"):
        callback.begin(run_context(net, 0))
    assert names_in(tmp_path) == []


def test_two_parameters_of_one_name_are_refused(tmp_path):
    net = LoraNetwork()
    net.dense.weight.name = "head.weight"
    with pytest.raises(InputError, match=r"'head\.weight'"):
        TrainableParamsCheckPoint(str(tmp_path)).step_end(run_context(net, 1))
    assert names_in(tmp_path) == []


def test_an_asynchronous_save_holds_the_values_of_its_step(tmp_path, monkeypatch):
    net = LoraNetwork()
    write = staged_checkpoint.save_checkpoint

    def write_late(*arguments, **options):
        time.sleep(0.2)
        write(*arguments, **options)

    monkeypatch.setattr(staged_checkpoint, "save_checkpoint", write_late)
    callback = TrainableParamsCheckPoint(str(tmp_path), config=CheckpointConfig(async_save=True))
    set_trainable(net, 1)
    callback.step_end(run_context(net, 1))
    set_trainable(net, 2)
    assert callback.latest_ckpt_file_name == ""
    callback.end(run_context(net, 1))
    content = ms.load_checkpoint(callback.latest_ckpt_file_name)
    assert all((value.asnumpy() == 1).all() for value in content.values())


def test_the_checksums_name_every_tensor(tmp_path):
    net = LoraNetwork()
    callback = TrainableParamsCheckPoint(str(tmp_path))
    callback.step_end(run_context(net, 1))
    sums = json.loads(Path(callback.latest_ckpt_file_name + ".sha256.json").read_text())
    assert sums["tensors"] == {
        name: {"dtype": "Float32", "shape": list(value.shape), "sha256": hashlib.sha256(value.tobytes()).hexdigest()}
        for name, value in trainable_values(net).items()
    }
