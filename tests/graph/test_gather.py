"""Joining what ranks hold: strategy files of MindSpore's planner, and layouts at random."""

import contextlib
import json
import math
import shutil

import hypothesis.strategies as st
import mindspore as ms
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from mindspore import Parameter, Tensor, merge_sliced_parameter
from mindspore.parallel import merge_pipeline_strategys

from mindpet.graph import UnverifiedCheckpointWarning, gather_adapter, load_trainable, write_trainable
from mindpet.graph.layouts import Layout
from mindpet.utils.exceptions import InputError
from tests.graph.ranks import (
    SLICES,
    STRATEGIES,
    cut,
    random_values,
    rewrite,
    save_plainly,
    save_ranks,
    strategy_of,
    with_value,
    without,
)
from tests.graph.sharded import CutAcross, CutTwice, make_tuned

TUNED = ["tuned", "tuned_optimizer", "tuned_optimizer_by_two", "tuned_pipeline"]
NETWORKS = {
    **{name: lambda: make_tuned(2, 2) for name in TUNED},
    **{name: CutAcross for name in ("across_optimizer", "across_optimizer_by_two")},
    **{name: CutTwice for name in ("twice", "twice_optimizer")},
}
KEY = b"0123456789abcdef"


def trainable_values(network):
    trainable = {parameter.name for parameter in network.trainable_params()}
    return {name: value for name, value in random_values(network).items() if name in trainable}


def assert_same(found, expected):
    dtypes = {name: str(value.asnumpy().dtype) for name, value in found.items()}
    assert dtypes == {name: str(value.dtype) for name, value in expected.items()}
    for name, value in expected.items():
        assert found[name].asnumpy().tobytes() == value.tobytes(), name


@pytest.fixture
def tuned(tmp_path):
    """The checkpoints of a fine-tuning in a 2 by 4 grid, and the whole values."""
    values = trainable_values(make_tuned(2, 4))
    return save_ranks(tmp_path / "tuned", "tuned", values, write_trainable), values


@pytest.fixture
def pipeline(tmp_path):
    values = trainable_values(make_tuned(2, 2))
    return save_ranks(tmp_path / "pipeline", "tuned_pipeline", values, write_trainable), values


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_the_planner_cuts_comes_back_bit_for_bit(tmp_path, name, dtype):
    values = {key: value.astype(dtype) for key, value in trainable_values(NETWORKS[name]()).items()}
    files = save_ranks(tmp_path / "ranks", name, values, write_trainable)
    stems = sorted(stem for stem in SLICES if stem == name or stem.startswith(f"{name}_stage"))
    for stem, file in zip(stems, files[:: 8 // len(stems)], strict=True):
        for key, held in ms.load_checkpoint(str(file)).items():
            assert list(held.shape) == SLICES[stem][key]
    assert_same(gather_adapter(files, strategy_of(name)), values)


def test_the_planned_strategies_cover_what_they_should():
    up, down = (
        SLICES["tuned"][f"{layer}.mindpet_delta_lora_{factor}"] for layer, factor in (("up", "b"), ("down", "a"))
    )
    assert (up, down) == ([16, 8], [8, 16])
    assert SLICES["tuned"]["head.weight"] == [8, 32]
    assert SLICES["tuned_optimizer"]["head.weight"] == [1, 32]
    assert {name.split(".")[0] for name in SLICES["tuned_pipeline_stage0"]} >= {"up"}
    assert not any(name.startswith(("down", "head")) for name in SLICES["tuned_pipeline_stage0"])


@st.composite
def layouts(draw):
    """Draw a grid, the grid axes that cut each axis of a parameter, and among how many a parallel optimizer shares."""
    grid = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    free = draw(st.permutations(range(len(grid))))
    cuts = [[] for _ in range(draw(st.integers(0, 3)))]
    for axis in free[: draw(st.integers(0, len(grid))) if cuts else 0]:
        cuts[draw(st.integers(0, len(cuts) - 1))].append(axis)
    copies = math.prod(grid) // math.prod(grid[axis] for axes in cuts for axis in axes)
    shares = draw(st.sampled_from([0, -1, *(n for n in (2, 3, 4) if copies % n == 0)])) if cuts and copies > 1 else 0
    return grid, cuts, shares


def whole_for(draw, grid, cuts, shares, dtype=np.float32):
    rows = math.prod(grid) if shares else 1
    shape = [
        math.prod(grid[axis] for axis in axes) * draw(st.integers(1, 2)) * (rows if number == 0 else 1)
        for number, axes in enumerate(cuts)
    ]
    return np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(dtype)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.data(), st.sampled_from([np.float32, np.float16, np.int8, ml_dtypes.bfloat16]))
def test_any_layout_cuts_and_joins_to_the_same_bits(layout, data, dtype):
    grid, cuts, shares = layout
    whole = whole_for(data.draw, *layout, dtype)
    joined = Layout(tuple(grid), tuple(map(tuple, cuts)), shares=shares).join(cut(whole, grid, cuts, shares))
    assert joined.dtype == dtype
    assert joined.shape == whole.shape
    assert joined.tobytes() == whole.tobytes()


@settings(max_examples=50, deadline=None)
@given(layouts(), st.data())
def test_one_changed_copy_is_found(layout, data):
    grid, cuts, _ = layout
    held = [np.array(part) for part in cut(whole_for(data.draw, grid, cuts, 0), grid, cuts)]
    made = Layout(tuple(grid), tuple(map(tuple, cuts)))
    rank = data.draw(st.integers(0, len(held) - 1))
    has_copies = len(held) > math.prod(made.counts)
    held[rank].reshape(-1).view(np.uint8)[data.draw(st.integers(0, held[rank].nbytes - 1))] ^= 1
    if not has_copies:
        made.join(held)
        return
    with pytest.raises(ValueError, match="copies"):
        made.join(held)


class Message:
    """A layout as MindSpore's merge_sliced_parameter reads it."""

    def __init__(self, grid, tensor_map, lengths=(), field=0):
        self.dev_matrix, self.tensor_map, self.param_split_shape = map(self._dims, (grid, tensor_map, lengths))
        self.field = field

    @staticmethod
    def _dims(values):
        message = type("Dims", (), {})()
        message.dim = list(values)
        return [message]


def merge_by_mindspore(held, message):
    parameters = [Parameter(Tensor(part), name="weight") for part in held]
    return merge_sliced_parameter(parameters, {"weight": message}).asnumpy()


def test_uneven_rows_are_joined_as_mindspore_does():
    whole = np.arange(40, dtype=np.float32).reshape(10, 4)
    held = [rows[:, columns] for rows in (whole[:7], whole[7:]) for columns in (slice(0, 2), slice(2, 4))]
    layout = Layout((2, 2), ((0,), (1,)), lengths=(7, 7, 3, 3))
    np.testing.assert_array_equal(layout.join(held), whole)
    np.testing.assert_array_equal(merge_by_mindspore(held, Message((2, 2), (1, 0), layout.lengths)), whole)
    with pytest.raises(ValueError, match="rows"):
        layout.join(held[::-1])


def test_fields_are_joined_as_mindspore_does():
    held = [np.arange(12, dtype=np.float32).reshape(6, 2) + 100 * rank for rank in range(4)]
    joined = Layout((4,), ((0,), ()), fields=3).join(held)
    np.testing.assert_array_equal(joined, merge_by_mindspore(held, Message((4,), (0, -1), field=3)))
    with pytest.raises(ValueError, match="5 fields"):
        Layout((4,), ((0,), ()), fields=5).join(held)


def test_a_merged_strategy_is_as_good_as_those_of_the_stages(tmp_path, pipeline):
    files, values = pipeline
    (tmp_path / "stages").mkdir()
    for file in strategy_of("tuned_pipeline"):
        shutil.copy(file, tmp_path / "stages")
    merge_pipeline_strategys(str(tmp_path / "stages"), str(tmp_path / "merged.ckpt"))
    assert_same(gather_adapter(files, tmp_path / "merged.ckpt"), values)
    assert_same(gather_adapter(files, strategy_of("tuned_pipeline")), values)


def test_a_json_strategy(tmp_path):
    layout = {"dev_matrix": [2, 2], "tensor_map": [-1, 0], "field": 0, "opt_weight_shard_size": 0}
    file = tmp_path / "strategy.json"
    file.write_text(json.dumps({"parallel_layout_item": {"w": layout | {"opt_weight_shard_step": 0}}}))
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    files = [tmp_path / f"{rank}.ckpt" for rank in range(4)]
    for path, part in zip(files, cut(whole, [2, 2], [[], [1]]), strict=True):
        write_trainable({"w": Tensor(part)}, path)
    np.testing.assert_array_equal(gather_adapter(files, file)["w"].asnumpy(), whole)


def test_the_adapter_is_written_as_one_checkpoint_that_loads(tmp_path, tuned, recwarn):
    files, values = tuned
    write_trainable(gather_adapter(files, strategy_of("tuned")), tmp_path / "adapter.ckpt")
    network = make_tuned(1, 1)
    load_trainable(network, tmp_path / "adapter.ckpt")
    assert_same({parameter.name: parameter for parameter in network.trainable_params()}, values)
    assert not [warning for warning in recwarn if warning.category is UnverifiedCheckpointWarning]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.ckpt", "adapter.ckpt.sha256.json", "tuned"]


def test_names_of_old_files_are_understood(tmp_path):
    values = trainable_values(make_tuned(2, 4))

    def save_by_old_names(content, file):
        save_plainly({name.replace("lora_a", "lora_A"): value for name, value in content.items()}, file)

    files = save_ranks(tmp_path / "old", "tuned", values, save_by_old_names)
    strategy = tmp_path / "old.ckpt"
    strategy.write_bytes(strategy_of("tuned").read_bytes().replace(b"lora_a", b"lora_A"))
    with pytest.warns(UnverifiedCheckpointWarning) as caught:
        adapter = gather_adapter(files, strategy)
    assert len(caught) == 8
    assert {warning.filename for warning in caught} == {__file__}
    assert_same(adapter, values)


def test_encrypted_files_need_their_key(tmp_path):
    values = trainable_values(make_tuned(2, 4))

    def save_encrypted(content, file):
        parameters = [{"name": name, "data": value} for name, value in content.items()]
        ms.save_checkpoint(parameters, str(file), enc_key=KEY)

    files = save_ranks(tmp_path / "encrypted", "tuned", values, save_encrypted)
    with pytest.raises(InputError, match="key"):
        gather_adapter(files, strategy_of("tuned"))
    with pytest.warns(UnverifiedCheckpointWarning):
        assert_same(gather_adapter(files, strategy_of("tuned"), dec_key=KEY), values)


@pytest.mark.parametrize(
    ("ranks", "change", "message"),
    [
        ([3], without("head.bias"), r"rank_3.*only one of them holds head\.bias;"),
        ([3], with_value("more", np.ones(1)), "rank_3.*only one of them holds more;"),
        (range(8), with_value("more", np.ones(1)), "holds more, of which .*says nothing"),
        (range(8), without("head.bias"), r"lack head\.bias, which the strategy lists"),
        ([5], with_value("head.bias", np.ones(8, np.float32)), r"head\.bias.*copies of one slice"),
        ([5], with_value("head.bias", np.ones(7, np.float32)), r"head\.bias.*\(7,\) float32 and \(8,\) float32"),
        ([5], with_value("head.bias", np.ones(8, np.float16)), r"head\.bias.*\(8,\) float16 and \(8,\) float32"),
        (range(8), with_value("head.bias", np.ones((8, 1), np.float32)), r"head\.bias.* 2 axes, .* 1;"),
    ],
)
def test_files_that_do_not_fit_each_other_or_the_strategy(tuned, ranks, change, message):
    files, _ = tuned
    for rank in ranks:
        rewrite(files[rank], change)
    with pytest.raises(InputError, match=message):
        gather_adapter(files, strategy_of("tuned"))


def test_the_files_and_strategies_of_a_pipeline_in_their_order(pipeline):
    files, _ = pipeline
    stages = strategy_of("tuned_pipeline")
    for paths, strategy, message in [
        (files[4:] + files[:4], stages, "says nothing"),
        (files, stages[::-1], "says nothing"),
        (files[:4], stages, "4 checkpoints are given, and .* 8 devices"),
        (files, stages[:1], "8 checkpoints are given, and .* 4 devices"),
        (files[:4] * 2, [stages[0], stages[0]], None),
    ]:
        if message is None:  # Two stages that share their parameters, and agree.
            assert len(gather_adapter(paths, strategy)) == 2
            continue
        with pytest.raises(InputError, match=message):
            gather_adapter(paths, strategy)
    for file in files[4:]:
        rewrite(file, lambda _: {name: -value for name, value in ms.load_checkpoint(str(files[0])).items()})
    with pytest.raises(InputError, match=r"rank_4.*other values"):
        gather_adapter(files, [stages[0], stages[0]])


def damaged(content):
    yield b""
    yield b"no strategy"
    yield content[:-1]
    yield content[: len(content) // 2] + bytes([255]) * 9
    yield content.replace(b"head.weight", b"head.w\xff\xffght")


def test_a_damaged_strategy_file(tmp_path, tuned):
    files, _ = tuned
    file = tmp_path / "strategy.ckpt"
    for content in damaged(strategy_of("tuned").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"strategy\.ckpt"):
            gather_adapter(files, file)
    for text in ("{", "[]", "{}", '{"parallel_layout_item": {"head.bias": {}}}'):
        file.with_suffix(".json").write_text(text)
        with pytest.raises(InputError, match=r"strategy\.json"):
            gather_adapter(files, file.with_suffix(".json"))
    item = {"field": 0, "opt_weight_shard_size": 0, "opt_weight_shard_step": 0}
    for grid, axes in [([], [-1]), ([0], [-1]), ([2], [1]), ([2], [-2]), ([2], [0, 0])]:
        layout = item | {"dev_matrix": grid, "tensor_map": axes}
        file.with_suffix(".json").write_text(json.dumps({"parallel_layout_item": {"head.bias": layout}}))
        with pytest.raises(InputError, match="cannot be read as a strategy file"):
            gather_adapter(files, file.with_suffix(".json"))


def test_a_flipped_bit_of_a_strategy_raises_nothing_but_the_documented_error(tmp_path, tuned):
    """A strategy file has no checksums, so not every flip can be found."""
    files, _ = tuned
    whole = strategy_of("tuned").read_bytes()
    file = tmp_path / "strategy.ckpt"
    refused = 0
    for index in range(0, len(whole), 29):
        file.write_bytes(bytes([*whole[:index], whole[index] ^ 1 << index % 8, *whole[index + 1 :]]))
        with contextlib.suppress(InputError):
            gather_adapter(files, file)
            refused -= 1
        refused += 1
    assert refused > 10


def test_damaged_or_missing_checkpoints(tmp_path, tuned):
    files, _ = tuned
    for change in (lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:]):
        data = files[6].read_bytes()
        files[6].chmod(0o600)
        files[6].write_bytes(change(data))
        with pytest.raises(InputError, match=r"rank_6\.ckpt is damaged"):
            gather_adapter(files, strategy_of("tuned"))
        files[6].write_bytes(data)
    for paths, message in [
        (files[:7], "7 checkpoints are given, and .* 8 devices"),
        ([*files[:7], tmp_path / "none.ckpt"], "none.ckpt does not exist"),
        ([*files[:7], tmp_path], "not a file"),
        ([], "empty"),
    ]:
        with pytest.raises(InputError, match=message):
            gather_adapter(paths, strategy_of("tuned"))
    for strategy, error in [(tmp_path / "none", InputError), (tmp_path, InputError), ([], InputError), (3, TypeError)]:
        with pytest.raises(error, match=r"strategy|none|file"):
            gather_adapter(files, strategy)
    with pytest.raises(TypeError, match="files"):
        gather_adapter(None, strategy_of("tuned"))


@pytest.mark.slow
def test_the_strategy_files_are_those_of_the_planner(tmp_path):
    from mindspore.parallel import build_searched_strategy

    from tests.graph.planned import plan_strategies
    from tests.planner.cuda_stubs import build_stubs

    build_stubs(tmp_path / "stubs")
    (tmp_path / "new").mkdir()
    plan_strategies(tmp_path / "stubs", tmp_path / "work", tmp_path / "new")
    assert json.loads((tmp_path / "new" / "slices.json").read_text()) == SLICES
    for file in STRATEGIES.glob("*.ckpt"):
        assert build_searched_strategy(str(tmp_path / "new" / file.name)) == build_searched_strategy(str(file))
    # Who shares a slice, in which order: the devices that differ along the grid's first and last axis.
    for name, group in [("across_optimizer", "0-1-4-5"), ("across_optimizer_by_two", "4-5")]:
        graph = max((tmp_path / "work" / "graphs" / name / "rank_5").glob("step_parallel_end_*.ir")).read_text()
        assert f'group_ranks: "{group}"' in graph
