import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mindpet.train.methods import METHOD_NAMES
from tests.tiny import write_bert, write_task

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "methods.py"


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("benchmark_of_methods", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(folder, method, rate, seed, valid, accuracy):
    metrics = {"valid_accuracy": valid, "accuracy": accuracy, "trainable_params": 1234, "trainable_ratio": 0.05}
    metrics |= {"baseline_accuracy": 0.5, "probe_accuracy": 0.7 + seed / 10, "step_ms_median": 100.0 + seed}
    (folder / f"{method}-{rate:g}-{seed}.json").write_text(json.dumps(metrics))


def test_the_rate_is_chosen_on_validation_texts_and_the_seeds_are_averaged(module, tmp_path):
    low, high = module.RATES["lora"]
    _write(tmp_path, "lora", low, 0, valid=0.80, accuracy=0.99)
    _write(tmp_path, "lora", high, 0, valid=0.81, accuracy=0.60)
    _write(tmp_path, "lora", high, 1, valid=0.10, accuracy=0.70)
    _write(tmp_path, "lora", high, 2, valid=0.10, accuracy=0.80)
    comparison = module.Comparison(tmp_path, 3, [])
    rate, runs = comparison.chosen("lora")
    assert (rate, [metrics["accuracy"] for metrics in runs]) == (high, [0.60, 0.70, 0.80])
    lines = list(module.report(comparison, ["lora"]))
    assert f"| lora | {high:g} | 1,234 | 5.00% | 0.700 ± 0.100 | +0.200 | -0.100 | 100 ms |" in lines
    assert "| frozen BERT + logistic regression |  |  |  | 0.800 ± 0.100 |  |  |  |" in lines
    assert f"| lora | {low:g}: 0.800, {high:g}: 0.810 |" in lines


def test_equal_rates_give_the_lower_one(module, tmp_path):
    low, high = module.RATES["ia3"]
    for rate in (high, low):
        _write(tmp_path, "ia3", rate, 0, valid=0.8, accuracy=0.8)
    assert module.Comparison(tmp_path, 1, []).chosen("ia3")[0] == low


def test_every_method_has_rates(module):
    assert module.RATES.keys() <= set(METHOD_NAMES)
    assert all(len(set(rates)) >= 2 for rates in module.RATES.values())


@pytest.mark.slow
def test_the_benchmark_makes_what_is_missing_and_nothing_twice(tmp_path):
    model, data = write_bert(tmp_path / "model"), write_task(tmp_path / "task.jsonl")
    flags = ["--model", str(model), "--data", str(data), "--batch-size", "8", "--epochs", "1"]
    results = tmp_path / "results"
    command = [sys.executable, str(SCRIPT), str(results), "--methods", "lora,bitfit", "--seeds", "2", "--", *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    made = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert len(made) == 6
    assert all(path.suffix == ".json" for path in made)
    assert "| bitfit | " in printed
    gone = next(path for path in made if path.name.startswith("bitfit"))
    gone.unlink()
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("\n") == printed.count("\n")
    again = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    assert {path for path in again if again[path] != made[path]} == {gone}
