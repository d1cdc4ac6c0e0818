import json
from pathlib import Path

import pytest
import yaml

from mindpet.train import run_folder
from mindpet.train.run_folder import RunFolder
from mindpet.train.task import Metric
from mindpet.utils.exceptions import InputError


def _earlier_run(path):
    folder = RunFolder(path, overwrite=False)
    folder.create({"seed": 1}, ["down", "up"])
    folder.log({"loss": 1.5})
    folder.log({"loss": 0.5})
    return folder


def test_a_run_folder_holds_settings_log_metrics_and_plot(tmp_path):
    folder = _earlier_run(tmp_path / "runs" / "a")
    folder.write_metrics({"accuracy": 0.5})
    folder.draw_losses([1.5, 0.5], Metric("accuracy", highest=1), {2: 0.5})
    assert yaml.safe_load((folder.path / "settings.yaml").read_text()) == {"seed": 1}
    assert [json.loads(line)["loss"] for line in (folder.path / "log.jsonl").read_text().splitlines()] == [1.5, 0.5]
    assert json.loads((folder.path / "labels.json").read_text()) == ["down", "up"]
    assert json.loads(folder.metrics.read_text()) == {"accuracy": 0.5}
    assert folder.plot.read_bytes().startswith(b"\x89PNG")


def test_an_earlier_run_is_kept_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "a"
    _earlier_run(path)
    with pytest.raises(InputError, match=r"exists; choose another with --out, go on .*--resume, or pass --overwrite"):
        RunFolder(path, overwrite=False)
    (path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="exists; choose another with --out or pass --overwrite"):
        RunFolder(path, overwrite=False)
    RunFolder(path, overwrite=True)
    assert (path / "log.jsonl").exists(), "nothing is removed before the new run is made"
    RunFolder(path, overwrite=True).create({"seed": 2}, [])
    assert not (path / "log.jsonl").exists()


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "precious.txt").write_text("data")
    with pytest.raises(InputError, match="not replaced"):
        RunFolder(tmp_path, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "data"


def test_a_folder_is_known_as_a_run_while_it_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a"
    _earlier_run(path)
    (path / "checkpoints" / "old.ckpt").write_text("")
    (path / "resume.safetensors").write_text("")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        RunFolder(path, overwrite=True).create({"seed": 2}, [])
    assert [entry.name for entry in path.iterdir()] == ["settings.yaml"]
    RunFolder(path, overwrite=True)
    RunFolder(path, overwrite=False, resume=True)


def test_a_path_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        RunFolder(tmp_path / "file" / "run", overwrite=False)


def test_a_place_where_nothing_can_be_made_is_refused():
    # /proc refuses new folders to everybody, root included.
    with pytest.raises(InputError, match="cannot be"):
        RunFolder(Path("/proc/mindpet-run"), overwrite=False).create({}, [])


@pytest.mark.parametrize("foreign", ["thesis.txt", "src", "task.jsonl"])
def test_a_run_folder_with_something_else_in_it_is_never_replaced(tmp_path, foreign):
    folder = _earlier_run(tmp_path / "run")
    (folder.path / foreign).write_text("data")
    with pytest.raises(InputError, match=f"holds '{foreign}', which no run writes"):
        RunFolder(folder.path, overwrite=True)
    assert (folder.path / foreign).read_text() == "data"


def test_a_name_that_no_file_system_takes_is_refused(tmp_path):
    with pytest.raises(InputError, match="choose another with --out"):
        RunFolder(tmp_path / ("a" * 300), overwrite=False)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    folder = _earlier_run(tmp_path / "run")
    (folder.path / "log.jsonl").unlink()
    (folder.path / "log.jsonl").mkdir()
    with pytest.raises(InputError, match=r"log\.jsonl cannot be written"):
        folder.log({"loss": 1.0})


@pytest.mark.parametrize("name", [".adapter-staging-0a", ".adapter-replaced-0a", ".0a.tmp"])
def test_what_a_killed_process_leaves_unfinished_is_in_nobodys_way(tmp_path, name):
    path = _earlier_run(tmp_path / "run").path
    leftover = path / name
    if name.endswith(".tmp"):
        leftover.write_text("half")
    else:
        leftover.mkdir()
        (leftover / "adapter_config.json").write_text("{}")
    RunFolder(path, overwrite=True)
    folder = RunFolder(path, overwrite=False, resume=True)
    folder.reopen({"seed": 1}, log_lines=0)
    assert not leftover.exists()
