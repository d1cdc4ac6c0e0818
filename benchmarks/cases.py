"""What is measured: networks, methods and batches, written to a folder from which all sides read the same numbers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from plan import Plan

from mindpet.data.batches import Batch, Batches, length_buckets
from mindpet.data.language import LanguageBatch

if TYPE_CHECKING:
    import torch

__all__ = [
    "BOTTLENECK",
    "CASES",
    "FACTOR",
    "TINY_CASES",
    "TOKENS",
    "Case",
    "grown",
    "prepare",
    "tell",
]

SEED = 0
BOTTLENECK, FACTOR, TOKENS = 64, 32, 16  # of adapters, low-rank adapters and P-Tuning v2


@dataclass(frozen=True)
class Case:
    """One network with its batches.

    Attributes:
        plan: Its numbers; the number of steps is not known yet.
        make_network: Takes the number of classes and returns a network of transformers.
        make_batches: Returns the batches, all of one shape.
    """

    plan: Plan
    make_network: Callable[[int], Any]
    make_batches: Callable[[], list[Any]]

    def with_method(self, method: str) -> Case:
        """Return the case with another method."""
        return replace(self, plan=replace(self.plan, method=method))


def prepare(case: Case, steps: int, folder: Path) -> None:
    """Write network, the method's first values, batches and plan of a run of `steps` steps into `folder`."""
    import torch
    from safetensors.numpy import save_file
    from side_peft import attach, starting_values

    from mindpet.train.optimizer import linear_schedule

    torch.manual_seed(SEED)
    network = case.make_network(case.plan.num_labels)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attention_dropout"):
        if hasattr(network.config, dropout):
            setattr(network.config, dropout, 0.0)
    network.save_pretrained(folder)
    save_file(starting_values(attach(network, case.plan)), folder / "start.safetensors")
    batches = case.make_batches()
    save_file(
        {name: np.stack([getattr(b, name) for b in batches]) for name in batches[0]._fields},
        folder / "batches.safetensors",
    )
    schedule = linear_schedule(1.0, steps, case.plan.warmup_ratio)
    plan = asdict(case.plan) | {"steps": steps, "schedule": schedule}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def tell(what: str) -> None:
    """Say on stderr what is going on; stdout holds the report alone."""
    print(what, file=sys.stderr, flush=True)


def _minilm(num_labels: int) -> torch.nn.Module:
    import transformers

    from mindpet.data.embedded import minilm_folder

    return transformers.BertForSequenceClassification.from_pretrained(minilm_folder(tell), num_labels=num_labels)


def _smollm2(_: int) -> torch.nn.Module:
    import transformers

    from mindpet.data.embedded import smollm2_folder

    return transformers.AutoModelForCausalLM.from_pretrained(smollm2_folder(tell), torch_dtype="float32")


def _random_llama(_: int, **config: int) -> torch.nn.Module:
    import transformers

    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def _random_bert(num_labels: int, **config: int) -> torch.nn.Module:
    """Return a BERT with random weights."""
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=num_labels, **config))


def _headlines() -> list[Batch]:
    """Return the demo's batches of its commonest shape, in the order of its first epoch."""
    from mindpet.data.dataset import load_data
    from mindpet.data.embedded import minilm_folder
    from mindpet.data.tokenizer import load_tokenizer
    from mindpet.train.settings import FinetuneSettings

    settings = FinetuneSettings()
    data, tokenizer = load_data(None, settings.seed, tell), load_tokenizer(minilm_folder(tell))
    train, *others = (tokenizer.encode(s.texts, settings.max_length) for s in (data.train, data.valid, data.test))
    lengths = [len(ids) for ids in sum(others, train)]
    widths = length_buckets(lengths, settings.max_length, settings.batch_size)
    batches = Batches(train, data.train.labels, settings.batch_size, widths, tokenizer.pad_id, settings.seed)
    epoch = list(batches.epoch(0))
    commonest = Counter(batch.input_ids.shape for batch in epoch).most_common(1)[0][0]
    return [batch for batch in epoch if batch.input_ids.shape == commonest]


def _random_batches(count: int, rows: int, length: int, vocabulary: int, num_labels: int, shortest: int) -> list[Batch]:
    """Return batches of random tokens, each text of `shortest` to `length` tokens, with random labels."""
    generator = np.random.default_rng(SEED)
    batches = []
    for number in range(count):
        lengths = generator.integers(shortest, length + 1, size=(rows, 1))
        mask = (np.arange(length) < lengths).astype(np.int32)
        input_ids = generator.integers(1, vocabulary, size=(rows, length), dtype=np.int32) * mask
        labels = generator.integers(num_labels, size=rows, dtype=np.int32)
        indices = np.arange(number * rows, (number + 1) * rows)
        batches.append(Batch(input_ids, mask, np.zeros_like(mask), labels, indices))
    return batches


def _random_passages(count: int, rows: int, length: int, vocabulary: int) -> list[LanguageBatch]:
    """Return batches of random tokens, each of which is the target of the one before."""
    generator = np.random.default_rng(SEED)
    batches = []
    for number in range(count):
        tokens = generator.integers(3, vocabulary, size=(rows, length + 1), dtype=np.int32)
        indices = np.arange(number * rows, (number + 1) * rows)
        mask = np.ones((rows, length), np.int32)
        batches.append(LanguageBatch(tokens[:, :-1].copy(), mask, tokens[:, 1:].copy(), indices))
    return batches


def grown(case: Case, rows: int, length: int, layers: int, rank: int) -> Case:
    """Return BERT-base of another size: random tokens, without padding."""
    plan = replace(case.plan, rank=rank)
    network = partial(_random_bert, vocab_size=21128, num_hidden_layers=layers)
    texts = {"rows": rows, "length": length, "shortest": length}
    return Case(plan, network, partial(_random_batches, count=4, vocabulary=21128, num_labels=15, **texts))


CASES = {
    "bert-base": Case(
        Plan("BERT-base, random weights and tokens, BERT's pooler", 1e-4, 1e-4, pooling="pooler", num_labels=15),
        partial(_random_bert, vocab_size=21128),
        partial(_random_batches, count=8, rows=8, length=128, vocabulary=21128, num_labels=15, shortest=128),
    ),
    "headlines": Case(
        Plan(
            "the demo's step: all-MiniLM-L6-v2 on BBC headlines, mean pooling", 5e-4, 5e-3, pooling="mean", num_labels=5
        ),
        _minilm,
        _headlines,
    ),
    "smollm2": Case(
        Plan("SmolLM2-135M on random tokens", 1e-4, 1e-4, targets=("q_proj", "v_proj")),
        _smollm2,
        partial(_random_passages, count=4, rows=4, length=256, vocabulary=49152),
    ),
}

_TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
_TINY_BATCHES = partial(_random_batches, count=4, rows=4, length=8, vocabulary=101, num_labels=3, shortest=3)


def _tiny(case: Case) -> Case:
    plan = replace(case.plan, title=f"a tiny network in place of: {case.plan.title}")
    if plan.pooling is None:
        texts = partial(_random_passages, count=4, rows=4, length=8, vocabulary=101)
        return Case(plan, partial(_random_llama, num_key_value_heads=2, **_TINY), texts)
    return Case(replace(plan, num_labels=3), partial(_random_bert, **_TINY), _TINY_BATCHES)


# The same paths through the code on networks that take milliseconds.
TINY_CASES = {name: _tiny(case) for name, case in CASES.items()}
