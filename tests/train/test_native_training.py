"""Whole runs on the embedded model with each kind of kernels, beside what another seed changes."""

import json

import numpy as np
import pytest
from rich.console import Console

from mindpet.data.bbc import load_bbc
from mindpet.data.embedded import bbc_folder
from mindpet.kernels import possible_kernels
from mindpet.train.finetune import finetune
from mindpet.train.settings import FinetuneSettings

SEEDS = 3
LAST = 10  # the steps over which a final loss is averaged

# How far native kernels may move the losses, in the mean, in standard deviations of the plain runs' losses. Within one,
# nobody can tell them from another seed. In float32 only the order of sums differs: where the deviation is 5e-2, that
# has moved losses by 1e-6, and a gradient of GELU that is wrong by a hundredth has moved them by 2e-4.
SHARES = {"f32": 0.001, "bf16": 1.0}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(kind not in possible_kernels(), reason=f"no kernels {kind} here"))
    for kind in SHARES
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function that gives the final losses and the test accuracies of runs with each seed."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "headlines.jsonl"
    headlines = load_bbc(bbc_folder(), seed=0).train
    pairs = zip(headlines.texts, headlines.labels.tolist(), strict=True)
    data.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs))

    def run(kind, seed):
        out = folder / f"{kind}-{seed}"
        settings = FinetuneSettings(
            data=data, out=out, seed=seed, kernels=kind, epochs=1, max_length=8, baselines=False
        )
        accuracy = finetune(settings, Console(quiet=True)).metrics["accuracy"]
        losses = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()[:-1]]
        assert np.mean(losses[-LAST:]) < 0.8 * np.mean(losses[:LAST]), "nothing was learnt"
        return np.mean(losses[-LAST:]), accuracy

    return lambda kind: np.array([run(kind, seed) for seed in range(SEEDS)]).T


@pytest.fixture(scope="module")
def plain(train):
    return train("off")


@pytest.mark.parametrize("kind", KINDS)
def test_native_kernels_end_within_the_noise_of_the_seeds(train, plain, kind):
    (plain_losses, plain_accuracies), (losses, accuracies) = plain, train(kind)
    assert np.mean(np.abs(losses - plain_losses)) <= SHARES[kind] * np.std(plain_losses, ddof=1)
    assert abs(np.mean(accuracies - plain_accuracies)) <= np.std(plain_accuracies, ddof=1)
