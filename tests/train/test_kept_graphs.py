"""Each run is a process of its own: MindSpore reads graphs of before only as long as it has missed none."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindpet.train import kept_graphs
from mindpet.train.kept_graphs import graphs_folder
from mindpet.utils.exceptions import InputError
from tests.scale import REPETITION, rarely

_READ = "Use the compilation cache"  # what MindSpore says when it compiles nothing

# Takes two steps each on batches of the given numbers of rows, and prints their losses.
_RUN = """
import json, sys
import mindspore, numpy as np
from mindpet.data.batches import Batch
from mindpet.train.methods import HEAD
from mindpet.train.optimizer import build_optimizer
from mindpet.train.prepare import is_head
from mindpet.train.step import TrainStep
from mindpet.tuning.accelerate import accelerate
from mindpet.tuning.attach import get_peft_model
from pathlib import Path
from tests.methods import batch, config_of, small_bert

rows, folder, change = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
mindspore.set_context(mode=mindspore.GRAPH_MODE)
mindspore.set_seed(0)
network = small_bert(layers=2, seed=1 if change == "values" else 0)
get_peft_model(network, config_of("lora", modules_to_save=[HEAD], lora_dropout=0.1))
if change == "a constant":
    network.bert.encoder.layer[1].output.LayerNorm.epsilon = 0.5
accelerate(network)
rate = 0.05 if change == "values" else 0.01
rates = {"learning_rate": rate, "head_learning_rate": rate, "warmup_ratio": 0.1, "weight_decay": 0.01}
optimizer = build_optimizer(network, steps=20, is_head=is_head, **rates)
seed = 1 if change == "seed" else 0
step = TrainStep(network, optimizer, scale_loss=False, seed=seed, graphs=Path(folder) if folder else None)
losses = []
for count in rows:
    inputs = [tensor.asnumpy() for tensor in batch(rows=count)]
    texts = Batch(*inputs, labels=np.arange(count, dtype=np.int32) % 3, indices=np.arange(count))
    losses += [step(texts).loss for _ in range(2)]
print(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that returns the losses of a run, and how many graphs it has read."""
    program = tmp_path_factory.mktemp("program") / "program.py"
    program.write_text(f"from mindpet.cli.main import main\n{_RUN}")

    def start(folder, rows=(2, 3), change="", script=(program,), **environment):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MS_")}
        result = subprocess.run(
            [sys.executable, *map(str, script), json.dumps(rows), str(folder or ""), change],
            env=inherited | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1]), result.stderr.count(_READ)

    return start


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "graphs"


@pytest.fixture(scope="module")
def first(run, tmp_path_factory):
    """The folder in which a first run has kept its graphs, and its losses."""
    folder = tmp_path_factory.mktemp("first") / "graphs"
    losses, read = run(folder)
    assert read == 0
    return folder, losses


@pytest.fixture
def before(first, folder):
    """The losses of the first run, whose graphs are in `folder`."""
    kept, losses = first
    shutil.copytree(kept, folder)
    return losses


def _entries(folder):
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


@pytest.mark.slow
def test_the_second_run_reads_the_graphs_of_the_first_and_takes_the_same_steps(run, folder, before):
    assert run(None) == (before, 0)
    assert len(_entries(folder)) == 2
    assert run(folder) == (before, 2)
    assert len(_entries(folder)) == 2


@pytest.mark.slow
def test_weights_and_rates_are_those_of_the_run_and_not_of_the_one_that_has_compiled(run, folder, before):
    compiled, _ = run(None, change="values")
    assert compiled != before
    assert run(folder, change="values") == (compiled, 2)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["a constant", pytest.param("seed", marks=REPETITION)])
def test_a_run_with_another_constant_reads_no_graph_of_before(run, folder, before, change):
    compiled, _ = run(None, change=change)
    assert compiled != before
    assert run(folder, change=change) == (compiled, 0)
    assert len(_entries(folder)) == 4
    assert run(folder, change=change) == (compiled, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("before")
def test_graphs_are_found_in_another_order_and_before_new_ones(run, folder):
    compiled, _ = run(None, rows=(3, 4, 2))
    assert run(folder, rows=(3, 4, 2)) == (compiled, 1)
    assert run(folder, rows=(3, 4, 2)) == (compiled, 3)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


_DAMAGES = {
    "a flipped bit": lambda entry: _flip(entry / "graph.mindir"),
    "a file cut short": lambda entry: os.truncate(entry / "graph.mindir", 1000),
    "an empty file": lambda entry: (entry / "graph.mindir").write_bytes(b""),
    "no graph": lambda entry: (entry / "graph.mindir").unlink(),
    "no digest": lambda entry: (entry / "sha256").unlink(),
    "a digest that is none": lambda entry: (entry / "sha256").write_bytes(b"\xff\xfe"),
    "another script": lambda entry: _flip(entry / "compile_dependency.hash"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=[] if n < 2 else REPETITION) for n, name in enumerate(_DAMAGES)]
)
def test_a_damaged_graph_is_compiled_again(run, folder, before, damage):
    for entry in _entries(folder):
        _DAMAGES[damage](entry)
    compiled = before[:2]  # as the first run has begun with two rows
    assert run(folder, rows=(2,)) == (compiled, 0)
    assert run(folder, rows=(2,)) == (compiled, 1)


@pytest.mark.slow
@rarely
def test_a_folder_that_cannot_be_written_costs_a_compilation_only(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert run(tmp_path / "file", rows=(2,)) == run(None, rows=(2,))


@pytest.mark.slow
@rarely
def test_a_program_that_is_not_ours_keeps_nothing(run, folder):
    assert run(folder, rows=(2,), script=("-c", _RUN)) == run(None, rows=(2,))
    assert not folder.exists()


@pytest.mark.slow
@rarely
def test_mindspores_own_cache_is_left_to_who_asks_for_it(run, tmp_path):
    run(tmp_path / "ours", rows=(2,), MS_COMPILER_CACHE_ENABLE="1", MS_COMPILER_CACHE_PATH=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()
    assert list((tmp_path / "theirs").rglob("*.mindir"))


def test_the_folder_is_below_the_cache_unless_it_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("MINDPET_CACHE", str(tmp_path))
    assert graphs_folder() is None  # as in all tests
    monkeypatch.setenv("MINDPET_GRAPHS", "keep")
    assert graphs_folder() == tmp_path / "graphs"
    monkeypatch.delenv("MINDPET_GRAPHS")
    assert graphs_folder() == tmp_path / "graphs"
    monkeypatch.setenv("MINDPET_CACHE", "~nobody-of-this-name/cache")
    assert graphs_folder() is None
    monkeypatch.setenv("MINDPET_GRAPHS", "on")
    with pytest.raises(InputError, match="MINDPET_GRAPHS is 'on'; accepted are keep and off"):
        graphs_folder()


def test_no_graph_is_kept_or_read_when_the_package_was_changed_after_the_start(monkeypatch):
    assert kept_graphs._code() is not None
    newest = max(file.stat().st_ctime for file in Path(kept_graphs.__file__).parents[1].rglob("*.py"))
    monkeypatch.setattr(kept_graphs, "_start_of_the_process", lambda: newest)
    assert kept_graphs._code() is None


def test_the_process_began_a_moment_ago():
    script = "import time; from mindpet.train.kept_graphs import _start_of_the_process as s; print(s(), time.time())"
    before = time.time()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    start, now = map(float, result.stdout.split()[-2:])
    assert before - 0.1 <= start <= now


def test_mindspore_finds_the_graph_that_was_put_there_and_no_other():
    desk = kept_graphs._Desk()
    files = desk.scripts.parent
    assert desk.take() is None
    assert desk.put(b"first", b"scripts")
    assert [file.name for file in files.glob("*.mindir")] == ["compile_cache_0.mindir"]
    assert desk.take() == b"first"
    (files / "compile_cache_1.mindir").write_bytes(b"compiled")
    assert desk.take() == b"compiled"
    assert desk.put(b"third", b"scripts")
    assert [file.name for file in files.glob("*.mindir")] == ["compile_cache_2.mindir"]
    (files / "compile_cache_5.mindir").write_bytes(b"MindSpore has counted others")
    assert desk.take() == b"MindSpore has counted others"
    desk.put(b"fourth", b"scripts")
    assert [file.name for file in files.glob("*.mindir")] == ["compile_cache_6.mindir"]
    desk.clear()
    assert not list(files.glob("*.mindir"))


def test_a_desk_without_room_has_nothing_on_it():
    desk = kept_graphs._Desk()
    desk.scripts.parent.mkdir(parents=True)
    desk.scripts.mkdir()  # so that nothing can be written there
    assert not desk.put(b"graph", b"scripts")
    assert desk.take() is None
