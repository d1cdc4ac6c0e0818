import json
import shutil

import pytest
from sklearn.metrics import accuracy_score, f1_score

from mindpet.data.dataset import load_data
from mindpet.train.serve import open_run
from tests.cli.runs import opened, run_program, write_run  # noqa: F401
from tests.tiny import write_bert


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run, its model and its data."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder)
    return folder


@pytest.fixture(scope="module")
def served(home):
    return open_run(home / "run")


def _evaluate(capsys, *arguments):
    assert run_program("evaluate", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("opened")
def test_the_figures_are_those_of_the_labels_that_infer_gives(home, capsys):
    figures = _evaluate(capsys, home / "run")
    data = load_data(home / "task.jsonl", 3)
    labels = [data.label_names[number] for number in data.test.labels]
    assert run_program("infer", home / "run", *data.test.texts) == 0
    predicted = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert figures == {
        "task": "classification",
        "data": "task",
        "split": "test",
        "texts": len(labels),
        "accuracy": pytest.approx(accuracy_score(labels, predicted)),
        "macro_f1": pytest.approx(f1_score(labels, predicted, average="macro")),
    }


@pytest.mark.usefixtures("opened")
def test_an_adapter_with_its_base_gives_what_its_run_gives(home, capsys):
    expected = _evaluate(capsys, home / "run", "--split", "all")
    given = ["--adapter", home / "run" / "adapter", "--model", home / "model", "--data", home / "task.jsonl"]
    assert _evaluate(capsys, *given, "--split", "all") == expected
    assert expected["texts"] == 60


@pytest.mark.usefixtures("opened")
def test_labels_are_known_by_their_names(home, tmp_path, capsys):
    lines = (home / "task.jsonl").read_text().splitlines()
    objects = [json.loads(line) for line in lines]
    file = tmp_path / "more.jsonl"
    file.write_text(
        "\n".join(json.dumps(one | {"label": "a new one"}) for one in objects[:3]) + "\n" + "\n".join(lines)
    )
    assert run_program("evaluate", home / "run", "--data", file) == 2
    assert "was not trained for the label 'a new one'" in capsys.readouterr().err


@pytest.mark.usefixtures("opened")
def test_the_table_goes_to_stdout_and_progress_to_stderr(home, capsys):
    assert run_program("evaluate", home / "run", "--split", "valid") == 0
    printed = capsys.readouterr()
    assert "macro_f1" in printed.out
    assert "task, split valid: 6 texts" in printed.out
    assert "applied from" not in printed.out


def test_a_model_that_has_moved_is_named_again(home, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    settings = run / "settings.yaml"
    settings.write_text(settings.read_text().replace(str(home / "model"), "no/such/place"))
    assert run_program("evaluate", run) == 2
    assert "--model" in capsys.readouterr().err
    said = []
    assert open_run(run, home / "model", said.append).source == home / "model"
    assert "lora applied from" in said[0]


def _break(home, tmp_path, what):
    """Return arguments that cannot be used."""
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    if what == "no run":
        return [home]
    if what == "unfinished":
        (run / "metrics.json").unlink()
    elif what == "damaged":
        file = run / "adapter" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif what == "another base":
        return [run, "--model", write_bert(tmp_path / "model", seed=5)]
    elif what == "nothing named":
        return []
    elif what == "two named":
        return [run, "--adapter", run / "adapter"]
    elif what == "bare adapter":
        return ["--adapter", run / "adapter"]
    elif what == "no such data":
        return [run, "--data", tmp_path / "nowhere.jsonl"]
    return [run]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no run", "no run folder"),
        ("unfinished", "--resume"),
        ("damaged", "adapter_model.safetensors"),
        ("another base", "trained on another base"),
        ("nothing named", "either a run folder or an adapter"),
        ("two named", "either a run folder or an adapter"),
        ("bare adapter", "--model and --data"),
        ("no such data", "nowhere.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(home, tmp_path, capsys, what, said):
    assert run_program("evaluate", *_break(home, tmp_path, what)) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("mindpet: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert printed.out == ""
