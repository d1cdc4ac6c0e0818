"""The closing table of a run."""

from __future__ import annotations

from rich.table import Table

from mindpet.train.finetune import Outcome

__all__ = ["closing_tables", "example_table"]


def closing_tables(outcome: Outcome) -> list[Table]:
    """Return the accuracies beside both baselines', and what the run cost."""
    metrics = outcome.metrics
    accuracies = Table(title=f"{outcome.data.name}: {len(outcome.data.test.texts)} test texts")
    accuracies.add_column("classifier")
    accuracies.add_column("trained parameters", justify="right")
    accuracies.add_column("accuracy", justify="right")
    if metrics["baseline_accuracy"] is not None:
        accuracies.add_row("TF-IDF + logistic regression", "-", f"{metrics['baseline_accuracy']:.3f}")
        accuracies.add_row("frozen BERT + logistic regression", "-", f"{metrics['probe_accuracy']:.3f}")
    accuracies.add_row(
        f"BERT tuned with {metrics['method']}",
        f"{metrics['trainable_params']:,} ({metrics['trainable_ratio']:.2%})",
        f"{metrics['accuracy']:.3f}",
        style="bold",
    )
    cost = Table(title="cost")
    for heading in ("a step", "all steps", "compiling", "parameters and moments", "peak of the process"):
        cost.add_column(heading, justify="right")
    cost.add_row(
        "-" if metrics["step_ms_median"] is None else f"{metrics['step_ms_median']:.0f} ms",
        f"{metrics['train_seconds']:.0f} s",
        "-" if metrics["compile_seconds"] is None else f"{metrics['compile_seconds']:.1f} s",
        f"{metrics['static_memory_mb']:.0f} MB",
        f"{metrics['peak_memory_mb']:.0f} MB",
    )
    return [accuracies, cost]


def example_table(outcome: Outcome, count: int) -> Table:
    """Return `count` test texts, spread over the topics, with predicted and true label."""
    data = outcome.data
    table = Table(title="test texts")
    for heading in ("text", "predicted", "true"):
        table.add_column(heading)
    step = max(len(data.test.texts) // count, 1)
    for index in range(0, step * count, step):
        predicted, true = data.label_names[outcome.predicted[index]], data.label_names[data.test.labels[index]]
        table.add_row(data.test.texts[index], predicted, true, style=None if predicted == true else "red")
    return table
