import json
import re
import signal
import subprocess
import sys
import time

import pytest
from mindspore import load_checkpoint

import mindpet
from mindpet.cli import main as program
from mindpet.models.bert import BertForSequenceClassification
from mindpet.train.methods import METHOD_NAMES
from tests.methods import FIELDS
from tests.tiny import CONFIG, write_bert, write_task

FAST = ("lora", "bitfit", "full")  # the others differ from LoRA in what tests/train looks at
METRICS = {
    *("method", "seed", "epochs", "trainable_params", "total_params", "trainable_ratio", "accuracy"),
    *("baseline_accuracy", "probe_accuracy", "static_memory_mb", "peak_memory_mb", "step_ms_median"),
    *("train_seconds", "compile_seconds", "waiting_share"),
}


@pytest.fixture
def task(tmp_path):
    """Arguments that fine-tune a tiny BERT on a tiny task; `tmp_path` holds nothing else."""
    model, data = write_bert(tmp_path / "model"), write_task(tmp_path / "task.jsonl")
    rates = ["--learning-rate", "0.02", "--head-learning-rate", "0.05"]
    return ["finetune", "--model", str(model), "--data", str(data), "--batch-size", "8", "--epochs", "2", *rates]


def _run(monkeypatch, arguments):
    """Run the program in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["mindpet", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        program.main()
    return end.value.code


def _losses(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def _options(method):
    """Return flags that fit the method to a tiny BERT."""
    fields = {f"--{name.replace('_', '-')}": value for name, value in FIELDS.get(method, {}).items()}
    return [
        item
        for flag, value in fields.items()
        for one in (value if isinstance(value, tuple) else (value,))
        for item in (flag, one)
    ]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in METHOD_NAMES]
)
def test_a_run_learns_and_leaves_a_whole_run_folder(monkeypatch, tmp_path, capsys, task, method):
    out = tmp_path / "run"
    more = [*_options(method), *([] if method == "lora" else ["--no-baselines"])]
    assert _run(monkeypatch, [*task, "--out", out, "--method", method, "--epochs", 12, *more]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics.keys() >= METRICS
    assert (metrics["method"], metrics["epochs"]) == (method, 12)
    assert 0 < metrics["trainable_params"] <= metrics["total_params"]
    assert (metrics["trainable_params"] == metrics["total_params"]) == (method == "full")
    assert metrics["static_memory_mb"] * 1e6 >= 4 * metrics["total_params"]
    assert (out / "loss.png").stat().st_size > 1000
    losses = _losses(out)
    assert len(losses) == 12 * 6
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])
    if method in ("lora", "full"):
        assert metrics["accuracy"] > 0.8, "the words decide the label"
    checkpoint = next(iter(sorted((out / "checkpoints").glob("*12_6.ckpt"))))
    values = {name: parameter.asnumpy() for name, parameter in load_checkpoint(str(checkpoint)).items()}
    assert metrics["trainable_params"] == sum(value.size for value in values.values())
    head = {"classifier.weight", "classifier.bias"}
    assert head <= values.keys()
    own = {"full": "", "bitfit": "bias"}.get(method, f"mindpet_delta_{method}_")
    assert all(own in name for name in values.keys() - head)
    printed = capsys.readouterr()
    _check_adapter(out, values, method, printed.out)
    assert ("TF-IDF" in printed.out) == (method == "lora")
    assert f"{metrics['accuracy']:.3f}" in printed.out
    assert "compiling the graph" in printed.err


def _check_adapter(out, values, method, printed):
    """Require that a run's adapter holds what its last checkpoint holds, and applies to a fresh network."""
    folder = out / "adapter"
    assert (f"adapter: {folder}" in printed.replace("\n", "")) == folder.exists() == (method != "full")
    if method == "full":
        return
    network = BertForSequenceClassification.from_pretrained(out.parent / "model", num_labels=2, pooling="mean")
    assert mindpet.load_adapter(network, folder).is_verified
    trained = {parameter.name: parameter.asnumpy() for parameter in network.trainable_params()}
    assert trained.keys() == values.keys()
    assert all((trained[name] == value).all() for name, value in values.items())
    assert "| accuracy |" in (folder / "README.md").read_text()


def test_float16_trains_with_a_loss_scale(monkeypatch, tmp_path, task):
    out = tmp_path / "run"
    assert _run(monkeypatch, [*task, "--out", out, "--dtype", "float16", "--epochs", 6]) == 0
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {entry["loss_scale"] for entry in entries if "loss" in entry} != {1.0}
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.8
    assert metrics["skipped_steps"] == sum(entry.get("skipped", False) for entry in entries)


def test_a_run_folder_is_kept_unless_overwrite_is_given_and_a_seed_gives_losses_bit_for_bit(
    monkeypatch, tmp_path, capsys, task
):
    out = tmp_path / "run"
    arguments = [*task, "--out", out, "--no-baselines", "--lora-dropout", 0.1, "--dropout", 0.1, "--seed", 3]
    assert _run(monkeypatch, arguments) == 0
    losses = _losses(out)
    before = (out / "metrics.json").read_text()
    assert _run(monkeypatch, arguments) == 2
    said = capsys.readouterr().err
    assert "--overwrite" in said
    assert "--resume" not in said, "a finished run has nothing to go on with"
    assert (out / "metrics.json").read_text() == before
    assert _run(monkeypatch, [*arguments, "--overwrite", "--seed", 4]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["seed"], metrics["probe_accuracy"]) == (4, None)
    assert _losses(out) != losses
    assert _run(monkeypatch, [*arguments, "--overwrite"]) == 0
    assert _losses(out) == losses


def test_divergence_ends_with_advice_and_exit_code_1(monkeypatch, tmp_path, capsys, task):
    code = _run(monkeypatch, [*task, "--out", tmp_path / "run", "--learning-rate", 1e30, "--method", "full"])
    said = capsys.readouterr().err
    assert code == 1
    assert "lower the learning rates" in said
    assert "last good checkpoint: none" in said


def _break(tmp_path, what):
    """Damage one thing of the task and return further arguments."""
    model, data = tmp_path / "model", tmp_path / "task.jsonl"
    if what == "no config":
        (model / "config.json").unlink()
    elif what == "no weights":
        (model / "model.safetensors").unlink()
    elif what == "torn weights":
        file = model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
    elif what == "other architecture":
        (model / "config.json").write_text(json.dumps(CONFIG | {"model_type": "t5", "architectures": ["T5Model"]}))
    elif what == "empty data":
        data.write_text("")
    elif what == "no JSON":
        data.write_text(data.read_text() + "oops\n")
    elif what == "unknown label":
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "train.jsonl").write_text(data.read_text())
        (folder / "test.jsonl").write_text('{"text": "day", "label": "sideways"}\n')
        return ["--data", folder]
    elif what == "no data":
        return ["--data", tmp_path / "nowhere.jsonl"]
    elif what == "out under a file":
        return ["--out", data / "run"]
    elif what == "unknown key":
        (tmp_path / "run.yaml").write_text("epoch: 1\n")
        return ["--config", tmp_path / "run.yaml"]
    elif what == "unknown target":
        return ["--target-modules", "querry"]
    elif what == "no vocabulary":
        (model / "vocab.txt").unlink()
    elif what == "vocabulary of another model":
        (model / "vocab.txt").write_text((model / "vocab.txt").read_text() + "more\n")
    elif what == "two positions":
        write_bert(model, CONFIG | {"max_position_embeddings": 2})
    elif what == "bfloat16":
        return ["--dtype", "bfloat16"]
    elif what == "no accelerator":
        return ["--device", "Ascend"]
    return []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no config", r"config\.json"),
        ("no weights", r"model\.safetensors"),
        ("torn weights", r"model\.safetensors"),
        ("other architecture", "t5"),
        ("empty data", r"task\.jsonl"),
        ("no JSON", r"task\.jsonl.*61"),
        ("unknown label", r"test\.jsonl.*1.*sideways"),
        ("no data", r"nowhere\.jsonl"),
        ("out under a file", "is no folder"),
        ("unknown key", r"run\.yaml: epoch: no such setting; did you mean epochs"),
        ("unknown target", "querry.*nearest.*query"),
        ("no vocabulary", r"tokenizer\.json"),
        ("vocabulary of another model", "knows 15 tokens.*holds 14"),
        ("two positions", "takes 2 tokens"),
        ("bfloat16", "no bfloat16 matrix product on a CPU"),
        ("no accelerator", "Ascend cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(monkeypatch, tmp_path, capfd, task, what, said):
    out = tmp_path / "run"
    more = _break(tmp_path, what)
    before = sorted(tmp_path.rglob("*"))
    assert _run(monkeypatch, [*task, "--out", out, "--no-baselines", *more]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("mindpet: ")]
    assert len(errors) == 1
    assert re.search(said, errors[0]), errors[0]
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_ctrl_c_ends_after_the_step_and_keeps_a_checkpoint(tmp_path, task):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mindpet.cli", *task, "--out", str(out), "--no-baselines", "--epochs", "100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (out / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1, said
    assert re.search("ended early; last checkpoint: .*--resume goes on", said)
    assert (out / "resume.safetensors").exists()
    assert "Traceback" not in said
    assert list((out / "checkpoints").glob("*.ckpt"))
    assert not (out / "metrics.json").exists()
