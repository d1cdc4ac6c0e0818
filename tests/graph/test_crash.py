"""Whenever the process or the machine stops during a save, the newest whole checkpoint is found and loaded.

The test records what a training does to its folder, then builds every state in which a crash may leave the disk after
each operation (see `disk.py`), and looks for the newest checkpoint in each. That the test is able to fail is shown by
leaving out each sync in turn, and by removing old checkpoints too early.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mindspore.train import CheckpointConfig

from mindpet.graph import TrainableParamsCheckPoint, load_trainable, newest_whole
from tests.graph.disk import Disk, Recorder
from tests.graph.networks import LoraNetwork, run_context, set_trainable, trainable_values

STEPS = 3


def name_of(step):
    return f"DELTA_CKP-1_{step}.ckpt"


def record(root, **options):
    """Return the operations of a training in which every trainable number is n at step n."""
    net = LoraNetwork()
    with Recorder(root) as recorder:
        config = CheckpointConfig(**options)
        callback = TrainableParamsCheckPoint(str(root / "run" / "checkpoints"), config=config)
        for step in range(1, STEPS + 1):
            set_trainable(net, step)
            callback.step_end(run_context(net, step))
            finished = re.search(r"1_(\d+)\.ckpt$", callback.latest_ckpt_file_name)
            recorder.mark(int(finished[1]) if finished else 0)
        callback.end(run_context(net, STEPS))
        recorder.mark(STEPS)
    return recorder.operations


class Examiner:
    """Tells what is wrong with the states after a crash; a tree that occurs again is not built again."""

    def __init__(self, root, scratch, operations):
        self._root, self._scratch = root, scratch
        self._net = LoraNetwork()
        self._seen = {}
        self._whole = whole_contents(operations)

    def find_failure(self, operations):
        """Return the first failure over all states, or None; operations count as finished by their marks."""
        disk, finished = Disk(self._root), 0
        for number, operation in enumerate(operations):
            disk.apply(operation)
            if operation[0] == "mark":
                finished = operation[1]
            for tree in disk.crash():
                step, failure = self._examine(tree)
                if failure or step < finished:
                    return f"after operation {number}, {operation[:2]}: found {step} of {finished}; {failure}"
        return None

    def _examine(self, tree):
        key = frozenset(tree.items())
        if key not in self._seen:
            self._seen[key] = self._build_and_load(tree)
        return self._seen[key]

    def _build_and_load(self, tree):
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        for path, content in sorted(tree.items()):
            target = self._scratch / Path(path).relative_to(self._root)
            target.mkdir() if content is None else target.write_bytes(content)
        folder = self._scratch / "run" / "checkpoints"
        if not folder.exists():
            return 0, None
        named = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        step = max((step for step, pair in self._whole.items() if pair.items() <= named.items()), default=0)
        failure = self._load(folder, step)
        for name in named:
            if name.endswith(".ckpt") and (name, named[name]) not in self._whole[int(name[12:-5])].items():
                failure = failure or f"{name} has its name and is not whole"
            if name.endswith(".ckpt") and name + ".sha256.json" not in named:
                failure = failure or f"{name} has its name and no checksums"
        return step, failure

    def _load(self, folder, step):
        """Load the newest checkpoint twice: as the crash left the folder, and after the next run has tidied it up."""
        expected = folder / name_of(step) if step else None
        for _ in range(2):
            if newest_whole(folder) != expected:
                return f"the newest is {expected}, but {newest_whole(folder)} was found"
            if expected:
                set_trainable(self._net, 0)
                load_trainable(self._net, expected)
                if not all(np.all(value == step) for value in trainable_values(self._net).values()):
                    return f"{expected} holds other values"
            TrainableParamsCheckPoint(str(folder))
        return "staging is left" if any(path.is_dir() for path in folder.iterdir()) else None


def whole_contents(operations):
    """Return {step: {file name: content}} of the checkpoints and their checksums when they got their names."""
    contents, whole = {}, {step: {} for step in range(1, STEPS + 1)}
    for kind, *rest in operations:
        if kind == "write":
            contents[rest[0]] = rest[1]
        elif kind == "rename" and (step := re.search(r"checkpoints/DELTA_CKP-1_(\d+)\.ckpt", rest[1])):
            whole[int(step[1])][Path(rest[1]).name] = contents[rest[2]]
    return whole


def last_of(operations, kind, name):
    """Return the number of the last operation of a kind whose last path ends in `name`."""
    return max(
        number
        for number, operation in enumerate(operations)
        if operation[0] == kind and operation[2 if kind == "rename" else 1].endswith(name)
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded").resolve()
    operations = record(root, keep_checkpoint_max=1)
    return operations, Examiner(root, tmp_path_factory.mktemp("replayed").resolve() / "tree", operations)


def test_the_record_is_what_a_save_does(recorded):
    operations, _ = recorded
    found = [operation[0] for operation in operations if operation[0] not in ("mark", "write")]
    folders = ["mkdir", "sync folder"] * 2
    staging = ["mkdir", "create", "rename"]  # The last two are MindSpore's own.
    checksums = ["create", "sync", "rename", "sync folder"]
    checkpoint = ["sync", "rename", "sync folder"]
    removal = ["remove", "sync folder", "remove"]
    save = [*staging, *checksums, *checkpoint, "rmdir"]
    assert found == folders + save + (save + removal) * (STEPS - 1)


@pytest.mark.parametrize("options", [{"keep_checkpoint_max": 2}, {"keep_checkpoint_max": 1, "async_save": True}])
def test_the_newest_checkpoint_survives_every_crash(tmp_path, options):
    root = tmp_path.resolve() / "recorded"
    root.mkdir()
    operations = record(root, **options)
    assert Examiner(root, tmp_path / "tree", operations).find_failure(operations) is None


def test_the_only_checkpoint_survives_every_crash(recorded):
    operations, examiner = recorded
    assert examiner.find_failure(operations) is None


def test_without_any_one_sync_a_crash_can_lose_a_checkpoint(recorded):
    operations, examiner = recorded
    syncs = [number for number, operation in enumerate(operations) if operation[0].startswith("sync")]
    needless = [
        operations[number]
        for number in syncs
        if examiner.find_failure(operations[:number] + operations[number + 1 :]) is None
    ]
    assert len(syncs) > 10
    assert needless == []


@pytest.mark.parametrize("moved", [1, 3])
def test_removing_the_old_checkpoint_too_early_can_lose_it(recorded, moved):
    """Move the removal of the old checkpoint, or that and its sync and its checksums', before the last publishing."""
    operations, examiner = recorded
    first = last_of(operations, "remove", name_of(2))
    publishing = last_of(operations, "rename", name_of(3))
    removal = operations[first : first + moved]
    early = [*operations[:publishing], *removal, *operations[publishing:first], *operations[first + moved :]]
    assert examiner.find_failure(early) is not None
