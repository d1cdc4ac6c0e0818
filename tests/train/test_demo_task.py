"""The embedded task, trained for real: what the demo promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindpet.train.methods import METHOD_NAMES
from tests.scale import FULL

SEEDS = 5 if FULL else 2
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
HEAD = 5 * 384 + 5
TOKENS = (2343, 3007)


def _run_demo(out, *flags):
    """Run the demo in a process of its own, as MindSpore keeps what each network has taken, and return the metrics."""
    every_core = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "mindpet.cli", "demo", *flags, "--out", str(out)]
    subprocess.run(command, check=True, env=every_core)
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.alone
def test_lora_beats_both_baselines_in_the_mean_of_the_seeds(tmp_path):
    accuracies = {"accuracy": [], "baseline_accuracy": [], "probe_accuracy": []}
    for seed in range(SEEDS):
        metrics = _run_demo(tmp_path / str(seed), "--seed", str(seed))
        assert 0.003 < metrics["trainable_ratio"] < 0.004
        for name, values in accuracies.items():
            values.append(metrics[name])
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    print(means)
    assert means["accuracy"] > means["baseline_accuracy"]
    assert means["accuracy"] > means["probe_accuracy"]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_each_method_learns_and_trains_what_the_documents_say(tmp_path, method):
    out = tmp_path / "run"
    chosen = [flag for token in TOKENS for flag in ("--token-indices", str(token))] if method == "tokens" else []
    metrics = _run_demo(out, "--method", method, *chosen, "--epochs", "1", "--max-length", "8", "--no-baselines")
    losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()[:-1]]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    (documented,) = re.findall(rf"^\| `{method}` \|.*\| ([\d,]+) ", PAGE.read_text(), re.MULTILINE)[:1]
    expected = len(TOKENS) * 384 + HEAD if method == "tokens" else int(documented.replace(",", ""))
    assert metrics["trainable_params"] == expected
    if method != "full":
        tensors = load_file(out / "adapter" / "adapter_model.safetensors")
        assert sum(tensor.size for tensor in tensors.values()) == expected
        own = "bias" if method == "bitfit" else f"mindpet_delta_{method}_"
        assert all(own in name or name.startswith("classifier.") for name in tensors)
