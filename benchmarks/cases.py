"""What is measured: networks and batches, written to a folder from which both sides read the very same numbers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindpet.data.batches import Batch, Batches, length_buckets

if TYPE_CHECKING:
    import transformers

__all__ = [
    "ALPHA",
    "CASES",
    "HEAD",
    "TARGETS",
    "TINY_CASES",
    "Case",
    "Plan",
    "R",
    "lora_config",
    "lora_key",
    "prepare",
    "read_batches",
    "read_plan",
    "tell",
]

SEED = 0
R, ALPHA = 8, 16
TARGETS = ("query", "value")
HEAD = "classifier"


@dataclass(frozen=True)
class Plan:
    """The numbers of a run that are no arrays.

    Attributes:
        title: What is trained, in a few words.
        pooling: What the head sees, 'mean' or 'pooler'.
        num_labels: Number of classes.
        learning_rate: Peak learning rate of LoRA.
        head_learning_rate: Peak learning rate of the head.
        warmup_ratio: Share of the steps over which the learning rates rise.
        weight_decay: Decay of matrices; vectors are not decayed.
        steps: Number of steps of the run, over which the learning rates rise and fall.
        schedule: The learning rate of each step as a share of the peak.
    """

    title: str
    pooling: str
    num_labels: int
    learning_rate: float
    head_learning_rate: float
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    steps: int = 0
    schedule: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """One network with its batches.

    Attributes:
        plan: Its numbers; the number of steps is not known yet.
        make_network: Takes the number of classes and returns a `transformers.BertForSequenceClassification`.
        make_batches: Returns the batches, all of one shape.
    """

    plan: Plan
    make_network: Callable[[int], transformers.BertForSequenceClassification]
    make_batches: Callable[[], list[Batch]]


def prepare(case: Case, steps: int, folder: Path) -> None:
    """Write the network, LoRA's first values, the batches and the plan of a run of `steps` steps into `folder`."""
    import peft
    import torch
    from safetensors.numpy import save_file

    from mindpet.train.optimizer import linear_schedule

    torch.manual_seed(SEED)
    network = case.make_network(case.plan.num_labels)
    for dropout in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        setattr(network.config, dropout, 0.0)
    network.save_pretrained(folder)
    adapted = peft.get_peft_model(network, lora_config())
    lora = {lora_key(name): p.detach().numpy() for name, p in adapted.named_parameters() if "lora_" in name}
    save_file(lora, folder / "lora.safetensors")
    fields = zip(Batch._fields, zip(*case.make_batches(), strict=True), strict=True)
    save_file({name: np.stack(arrays) for name, arrays in fields}, folder / "batches.safetensors")
    schedule = linear_schedule(1.0, steps, case.plan.warmup_ratio)
    plan = asdict(case.plan) | {"steps": steps, "schedule": schedule}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """Return the plan that `prepare` wrote."""
    return Plan(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))


def read_batches(folder: Path) -> list[Batch]:
    """Return the batches that `prepare` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / "batches.safetensors")
    return [Batch(*rows) for rows in zip(*(arrays[name] for name in Batch._fields), strict=True)]


def tell(what: str) -> None:
    """Say on stderr what is going on; stdout holds the report alone."""
    print(what, file=sys.stderr, flush=True)


def lora_config() -> Any:
    """Return PEFT's configuration of the LoRA that both sides train."""
    import peft

    return peft.LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[*TARGETS], modules_to_save=[HEAD])


def lora_key(peft_name: str) -> str:
    """Return the name in `lora.safetensors` of PEFT's parameter: `<path of the layer>.lora_a` or `.lora_b`."""
    return peft_name.removeprefix("base_model.model.").removesuffix(".default.weight").lower()


def _minilm(num_labels: int) -> transformers.BertForSequenceClassification:
    import transformers

    from mindpet.data.embedded import minilm_folder

    return transformers.BertForSequenceClassification.from_pretrained(minilm_folder(tell), num_labels=num_labels)


def _random_bert(num_labels: int, **config: int) -> transformers.BertForSequenceClassification:
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


CASES = {
    "headlines": Case(
        Plan("the demo's step: all-MiniLM-L6-v2 on BBC headlines, masked mean pooling", "mean", 5, 5e-4, 5e-3),
        _minilm,
        _headlines,
    ),
    "bert-base": Case(
        Plan("BERT-base with random weights on random tokens, BERT's pooler", "pooler", 15, 1e-4, 1e-4),
        partial(_random_bert, vocab_size=21128),
        partial(_random_batches, count=8, rows=8, length=128, vocabulary=21128, num_labels=15, shortest=128),
    ),
}

_TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}
# The same paths through the code on a network that takes milliseconds.
TINY_CASES = {
    name: Case(
        Plan(f"a tiny BERT in place of: {case.plan.title}", case.plan.pooling, 3, 5e-4, 5e-3),
        partial(_random_bert, **_TINY),
        partial(_random_batches, count=4, rows=4, length=8, vocabulary=101, num_labels=3, shortest=3),
    )
    for name, case in CASES.items()
}
