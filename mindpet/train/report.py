"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from mindpet.train.classification import ClassificationTask
from mindpet.train.finetune import Outcome
from mindpet.train.task import CLASSIFICATION

__all__ = ["closing_tables", "example_table"]


def closing_tables(outcome: Outcome) -> list[Table]:
    """Return what the test split has shown beside what it is compared with, and what the run cost."""
    table = _accuracy_table(outcome) if outcome.task.name == CLASSIFICATION else _perplexity_table(outcome)
    return [table, _cost_table(outcome.metrics)]


def example_table(task: ClassificationTask, predicted: np.ndarray, count: int) -> Table:
    """Return `count` test texts, spread over the topics, with predicted and true label."""
    data = task.data
    table = Table(title="test texts")
    for heading in ("text", "predicted", "true"):
        table.add_column(heading)
    step = max(len(data.test.texts) // count, 1)
    for index in range(0, step * count, step):
        said, true = data.label_names[predicted[index]], data.label_names[data.test.labels[index]]
        table.add_row(data.test.texts[index], said, true, style=None if said == true else "red")
    return table


def _accuracy_table(outcome: Outcome) -> Table:
    metrics = outcome.metrics
    table = Table(title=f"{outcome.task.data_name}: {len(outcome.predicted)} test texts")
    table.add_column("classifier")
    table.add_column("trained parameters", justify="right")
    table.add_column("accuracy", justify="right")
    if metrics["baseline_accuracy"] is not None:
        table.add_row("TF-IDF + logistic regression", "-", f"{metrics['baseline_accuracy']:.3f}")
        table.add_row("frozen BERT + logistic regression", "-", f"{metrics['probe_accuracy']:.3f}")
    table.add_row(
        f"BERT tuned with {metrics['method']}",
        f"{metrics['trainable_params']:,} ({metrics['trainable_ratio']:.2%})",
        f"{metrics['accuracy']:.3f}",
        style="bold",
    )
    return table


def _perplexity_table(outcome: Outcome) -> Table:
    metrics = outcome.metrics
    table = Table("language model", title=f"{outcome.task.data_name}: test split")
    table.add_column("trained parameters", justify="right")
    table.add_column("perplexity", justify="right")
    if metrics["base_perplexity"] is not None:
        table.add_row("as it was", "-", f"{metrics['base_perplexity']:.3f}")
    table.add_row(
        f"tuned with {metrics['method']}",
        f"{metrics['trainable_params']:,} ({metrics['trainable_ratio']:.2%})",
        f"{metrics['perplexity']:.3f}",
        style="bold",
    )
    return table


def _cost_table(metrics: Mapping[str, Any]) -> Table:
    table = Table(title="cost")
    for heading in ("a step", "all steps", "compiling", "parameters and moments", "peak of the process"):
        table.add_column(heading, justify="right")
    table.add_row(
        "-" if metrics["step_ms_median"] is None else f"{metrics['step_ms_median']:.0f} ms",
        f"{metrics['train_seconds']:.0f} s",
        "-" if metrics["compile_seconds"] is None else f"{metrics['compile_seconds']:.1f} s",
        f"{metrics['static_memory_mb']:.0f} MB",
        f"{metrics['peak_memory_mb']:.0f} MB",
    )
    return table
