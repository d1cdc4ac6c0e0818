"""A pretraining and a fine-tuning on 8 devices loaded into one network: both or nothing."""

import json
import math
import re
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mindspore import Tensor, nn
from mindspore.parallel import merge_pipeline_strategys

from mindpet.graph import (
    UnverifiedCheckpointWarning,
    distributed,
    load_trainable_distributed,
    write_trainable,
)
from mindpet.utils.exceptions import InputError
from tests.graph.ranks import cut, random_values, rewrite, save_plainly, save_ranks, strategy_of, with_value, without
from tests.graph.sharded import NARROW, CutAcross, CutTwice, make_pretrained, make_tuned
from tests.graph.test_gather import layouts, whole_for

BASES = ["pretrained", "pretrained_optimizer", "pretrained_pipeline"]
TUNED = ["tuned", "tuned_optimizer", "tuned_optimizer_by_two", "tuned_pipeline"]


def base_values(seed=1):
    return random_values(make_pretrained(1, 1), seed)


def tuned_values(seed=2):
    network = make_tuned(1, 1)
    return {parameter.name: random_values(network, seed)[parameter.name] for parameter in network.trainable_params()}


def values_of(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


class Training:
    """The arguments for loading a pretraining and a fine-tuning, and what the network should hold afterwards."""

    def __init__(self, folder, base="pretrained", tuned="tuned"):
        base_whole, tuned_whole = base_values(), tuned_values()
        self.folder = folder
        self.base_files = save_ranks(folder / "base", base, base_whole, save_plainly)
        self.tuned_files = save_ranks(folder / "tuned", tuned, tuned_whole, write_trainable)
        self.base_strategy, self.tuned_strategy = strategy_of(base), strategy_of(tuned)
        self.expected = base_whole | tuned_whole
        self.network = make_tuned(1, 1)

    def load(self, network=None, **changed):
        names = ("base_files", "base_strategy", "tuned_files", "tuned_strategy")
        arguments = {name: getattr(self, name) for name in names} | changed
        load_trainable_distributed(network or self.network, **arguments)

    def assert_refused(self, message, error=InputError, network=None, **changed):
        """Assert that loading raises an error, and that neither the network nor the folder changes."""
        network = network or self.network
        before, files = values_of(network), self._content()
        with pytest.raises(error, match=message):
            self.load(network, **changed)
        assert_same(values_of(network), before)
        assert self._content() == files

    def _content(self):
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)


@pytest.mark.parametrize("tuned", TUNED)
@pytest.mark.parametrize("base", BASES)
def test_base_and_tuned_values_arrive_bit_for_bit(tmp_path, base, tuned, recwarn):
    training = Training(tmp_path, base, tuned)
    before = [id(parameter) for parameter in training.network.get_parameters()]
    training.load()
    assert_same(values_of(training.network), training.expected)
    assert [id(parameter) for parameter in training.network.get_parameters()] == before
    assert not [warning for warning in recwarn if warning.category is UnverifiedCheckpointWarning]


def test_merged_strategies_of_pipelines(tmp_path):
    training = Training(tmp_path, "pretrained_pipeline", "tuned_pipeline")
    for kind in ("base", "tuned"):
        stages = tmp_path / f"{kind}_stages"
        stages.mkdir()
        for file in getattr(training, f"{kind}_strategy"):
            shutil.copy(file, stages)
        setattr(training, f"{kind}_strategy", tmp_path / f"{kind}_merged.ckpt")
        merge_pipeline_strategys(str(stages), str(tmp_path / f"{kind}_merged.ckpt"))
    training.load()
    assert_same(values_of(training.network), training.expected)


def test_a_compiled_network_sees_the_values(training, mode):
    network = training.network
    x = Tensor(np.random.default_rng(0).normal(size=(4, NARROW)).astype(np.float32))
    before = network(x).asnumpy()
    training.load()
    whole = {name: value.astype(np.float16).astype(np.float32) for name, value in training.expected.items()}
    for layer in ("up", "down"):
        branch = whole[f"{layer}.mindpet_delta_lora_b"] @ whole[f"{layer}.mindpet_delta_lora_a"]
        whole[layer] = whole[f"{layer}.weight"] + branch
    hidden = x.asnumpy() @ whole["up"].T + whole["up.bias"]
    hidden = hidden @ whole["down"].T + whole["down.bias"]
    expected = hidden @ whole["head.weight"].T + whole["head.bias"]
    after = network(x).asnumpy()
    assert np.abs(after - expected).max() < 0.01 * np.abs(expected).max() < np.abs(after - before).max()


@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16])
def test_other_dtypes(tmp_path, dtype):
    def save(writer):
        return lambda content, file: writer({name: value.astype(dtype) for name, value in content.items()}, file)

    training = Training(tmp_path)
    save_ranks(tmp_path / "base", "pretrained", base_values(), save(save_plainly))
    training.tuned_files = save_ranks(tmp_path / "half", "tuned", tuned_values(), save(write_trainable))
    training.assert_refused("is .* and not .* Float32")
    training.network.to_float(ms.float16)
    for parameter in training.network.get_parameters():
        parameter.set_dtype(dtype)
    training.load()
    for parameter in training.network.get_parameters():
        assert parameter.dtype == dtype
        assert parameter.get_bytes() == Tensor(training.expected[parameter.name]).astype(dtype).get_bytes()


def test_the_optimizers_state_in_base_files_is_left_out(training):
    extra = {"epoch_num": 3, "global_step": Tensor([5], ms.int32), "loss_scale": Tensor(2.0)}
    for file in training.base_files:
        content = ms.load_checkpoint(str(file))
        state = {f"{kind}{name}": value for kind in ("adam_m.", "exp_avg_sq_") for name, value in content.items()}
        entries = [
            {"name": name, "data": value} for name, value in (content | state | extra).items() if name != "epoch_num"
        ]
        file.chmod(0o600)
        ms.save_checkpoint(entries, str(file), append_dict={"epoch_num": 3})
    training.load()
    assert_same(values_of(training.network), training.expected)


def test_base_files_need_not_give_what_is_trained(training):
    """A new head comes from the fine-tuning alone."""
    for file in training.base_files:
        content = {name: value for name, value in ms.load_checkpoint(str(file)).items() if "head" not in name}
        file.chmod(0o600)
        save_plainly(content, file)
    training.load()
    assert_same(values_of(training.network), training.expected)


def test_a_name_that_ends_like_another_is_left_alone(tmp_path):
    """MindSpore loads by the end of a name: `deep.weight` of the file would land in `weight` of the network."""

    class Net(nn.Cell):
        def __init__(self):
            super().__init__()
            zeros = Tensor(np.zeros(2, np.float32))
            self.weight = ms.Parameter(zeros, name="weight", requires_grad=False)
            self.deep_weight = ms.Parameter(zeros, name="deep.weight")

    network = Net()
    strategy = write_strategy(tmp_path / "s.json", {"weight": ([2], [-1], 0), "deep.weight": ([2], [-1], 0)})
    files = [[tmp_path / f"{kind}_{rank}.ckpt" for rank in range(2)] for kind in ("base", "tuned")]
    for paths, name, value in zip(files, ("weight", "deep.weight"), (1, 2), strict=True):
        for path in paths:
            write_trainable({name: Tensor(np.full(2, value, np.float32))}, path)
    load_trainable_distributed(network, files[0], strategy, files[1], strategy)
    assert {name: value.tolist() for name, value in values_of(network).items()} == {
        "weight": [1, 1],
        "deep.weight": [2, 2],
    }


def write_strategy(file, layouts):
    items = {
        name: {
            "dev_matrix": grid,
            "tensor_map": tensor_map,
            "field": 0,
            "opt_weight_shard_size": shares,
            "opt_weight_shard_step": _step(grid, tensor_map) if shares else 0,
        }
        for name, (grid, tensor_map, shares) in layouts.items()
    }
    file.write_text(json.dumps({"parallel_layout_item": items}))
    return file


def _step(grid, tensor_map):
    """Return how far the first two devices that hold one slice lie apart."""
    free = [axis for axis in range(len(grid)) if axis not in tensor_map and grid[-1 - axis] > 1]
    return math.prod(grid[len(grid) - free[0] :]) if free else 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.data())
def test_mindspore_loads_the_right_values_or_none(tmp_path, layout, data):
    grid, cuts, shares = layout
    if any(len(axes) > 1 for axes in cuts):
        cuts = [axes[:1] for axes in cuts]
        shares = 0
    whole = whole_for(data.draw, grid, cuts, shares)
    tensor_map = [len(grid) - 1 - axes[0] if axes else -1 for axes in cuts]
    strategy = write_strategy(tmp_path / "s.json", {"w": (grid, tensor_map, shares)})
    files = [tmp_path / f"{rank}.ckpt" for rank in range(math.prod(grid))]
    for path, part in zip(files, cut(whole, grid, cuts, shares), strict=True):
        save_plainly({"w": Tensor(part)}, path)
    network = nn.Cell()
    network.insert_param_to_cell("w", ms.Parameter(Tensor(np.zeros_like(whole))))
    (ranks,) = distributed._assign(files, distributed.read_stages([strategy]))
    try:
        loaded = distributed._load_stage(ranks, distributed._join_stage(ranks))
    except InputError as error:
        assert "load_distributed_checkpoint" in str(error)
        assert shares or not cuts, error
        return
    assert loaded["w"].asnumpy().tobytes() == whole.tobytes()


@pytest.mark.parametrize(("name", "make"), [("across_optimizer", CutAcross), ("twice", CutTwice)])
def test_what_mindspore_cannot_join_is_an_error(tmp_path, name, make):
    network = make()
    values = random_values(network)
    files = save_ranks(tmp_path / "tuned", name, values, write_trainable)
    empty = write_strategy(tmp_path / "s.json", {"unused": ([1], [-1], 0)})
    save_plainly({"global_step": Tensor([1])}, tmp_path / "base.ckpt")
    before = values_of(network)
    with pytest.raises(InputError, match="load_distributed_checkpoint cannot load"):
        load_trainable_distributed(network, [tmp_path / "base.ckpt"], empty, files, strategy_of(name))
    assert_same(values_of(network), before)


def test_a_failure_half_way_leaves_the_network(training, monkeypatch):
    load = distributed.load_distributed_checkpoint
    calls = []

    def fail_in_the_tuned_files(network, files, *rest, **options):
        calls.append(files)
        load(network, files, *rest, **options)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(distributed, "load_distributed_checkpoint", fail_in_the_tuned_files)
    training.assert_refused("out of memory")
    assert [call[0] for call in calls] == [str(training.base_files[0]), str(training.tuned_files[0])]


def test_values_other_than_those_of_the_files_are_refused(training, monkeypatch):
    def load_nothing(network, *rest, **options):
        return True

    monkeypatch.setattr(distributed, "load_distributed_checkpoint", load_nothing)
    training.assert_refused("joins .* otherwise than the strategy says")


def test_without_checksums_tuned_files_are_loaded_as_unverified(training):
    for file in training.tuned_files:
        file.with_name(file.name + ".sha256.json").unlink()
    with pytest.warns(UnverifiedCheckpointWarning) as caught:
        training.load()
    assert [warning.filename for warning in caught] == [__file__] * 8
    assert_same(values_of(training.network), training.expected)


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        ("base_files", without("up.weight"), r"up\.weight is missing"),
        ("base_files", with_value("more", np.ones(2)), "holds more, of which"),
        ("base_files", with_value("down.bias", np.ones(3, np.float32)), r"down\.bias is \(3,\)"),
        ("base_files", with_value("down.bias", np.ones(NARROW, np.float16)), r"down\.bias is .*Float16"),
        ("tuned_files", without("head.bias"), r"head\.bias is missing"),
        ("tuned_files", with_value("up.bias", np.ones(64, np.float32)), r"holds up\.bias, of which"),
        ("tuned_files", with_value("adam_m.head.bias", np.ones(8, np.float32)), "adam_m.head.bias is unknown"),
        ("tuned_files", with_value("head.bias", np.ones(3, np.float32)), r"head\.bias is \(3,\)"),
    ],
)
def test_what_does_not_fit_is_listed(training, files, change, message):
    for file in getattr(training, files):
        rewrite(file, change)
    training.assert_refused(message)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])


@pytest.mark.parametrize(
    ("damage", "files", "message"),
    [
        (truncate, "base_files", r"base/rank_2\.ckpt cannot be read"),
        (truncate, "tuned_files", r"tuned/rank_2\.ckpt is damaged"),
        (flip, "tuned_files", r"tuned/rank_2\.ckpt is damaged"),
        (lambda file: file.unlink(), "base_files", r"base/rank_2\.ckpt does not exist"),
        (lambda file: file.unlink(), "tuned_files", r"tuned/rank_2\.ckpt does not exist"),
    ],
)
def test_a_damaged_or_missing_checkpoint(training, damage, files, message):
    file = getattr(training, files)[2]
    file.chmod(0o600)
    damage(file)
    training.assert_refused(message)


def test_bad_arguments(training, tmp_path):
    bad_strategy = tmp_path / "bad.ckpt"
    bad_strategy.write_bytes(b"no strategy")
    for changed, message, error in [
        ({"base_files": training.base_files[:-1]}, "7 checkpoints .* 8 devices", InputError),
        ({"tuned_files": training.tuned_files[:-1]}, "7 checkpoints .* 8 devices", InputError),
        ({"base_strategy": bad_strategy}, "bad.ckpt cannot be read as a strategy", InputError),
        ({"tuned_strategy": bad_strategy}, "bad.ckpt cannot be read as a strategy", InputError),
        ({"tuned_strategy": tmp_path / "none"}, "none does not exist", InputError),
        ({"tuned_strategy": training.tuned_files[0]}, "layout of no parameter", InputError),
        ({"tuned_files": []}, "tuned_files is an empty list", InputError),
        ({"base_files": None}, "base_files is None", TypeError),
        ({"base_strategy": None}, "base_strategy is None", TypeError),
        ({"tuned_files": training.base_files}, "of which .* says nothing", InputError),
        ({"tuned_strategy": strategy_of("tuned_optimizer")}, "does not fit|is .* and not", InputError),
    ]:
        training.assert_refused(message, error, **changed)
    with pytest.raises(TypeError, match="network"):
        training.load([1])
    training.assert_refused("unknown|missing", network=CutTwice())
    training.network.up.weight.name = training.network.down.weight.name
    training.assert_refused(r"have the name 'down\.weight'")


def test_the_examples_of_the_documents(training, tmp_path, monkeypatch):
    shutil.copy(training.base_strategy, tmp_path / "base" / "strategy.ckpt")
    shutil.copy(training.tuned_strategy, tmp_path / "tuned" / "strategy.ckpt")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "distributed.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {"network": training.network}
    for block in blocks:
        exec(block, names)
    assert_same(values_of(training.network), training.expected)
    assert callable(names["make_callback"])
