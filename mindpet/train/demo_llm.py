"""The demonstration on a language model: methods tune it on news articles, and continue one that they have not seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from rich.console import Console
from rich.table import Table

from mindpet.data.bbc import load_bbc_articles
from mindpet.data.embedded import bbc_folder, smollm2_folder
from mindpet.data.language_data import LanguageExample, Passage
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.models.auto import load_causal_lm
from mindpet.models.generation import generate
from mindpet.storage.atomic import make_folder, write_text
from mindpet.train.finetune import finetune
from mindpet.train.progress import announce
from mindpet.train.run_folder import RunFolder
from mindpet.train.settings import FinetuneSettings, load_settings
from mindpet.train.task import LANGUAGE

__all__ = ["METHODS", "Demo", "Tuned", "continuation_table", "perplexity_table", "run_demo", "settings_of_the_demo"]

METHODS = ("ptuning2", "lora")

_OUT = Path("runs/demo-llm")
_FOLDER = "articles"
_SETTINGS = {"max_length": 64, "batch_size": 8, "epochs": 1}
# Where a prompt starts that may start from a text; at random it starts far worse.
_PROMPT = "BBC News. Here is an article of today's news, on business, entertainment, politics, sport or technology:"
_ARTICLES = {"train": 480, "valid": 16, "test": 48}  # of each split, evenly spread: as many as a few minutes allow
_BEGINNING = 24  # words
_NEW_TOKENS = 48


@dataclass(frozen=True)
class Tuned:
    """What a method has made of the model.

    Attributes:
        metrics: What its `metrics.json` holds.
        continuation: How it goes on after the article's beginning.
        folder: Its run folder.
    """

    metrics: Mapping[str, Any]
    continuation: str
    folder: Path


@dataclass(frozen=True)
class Demo:
    """What the demonstration has shown.

    Attributes:
        beginning: Of an article that no method has seen.
        before: How the model went on after it before.
        tuned: Each method's result, in their order.
    """

    beginning: str
    before: str
    tuned: tuple[Tuned, ...]


def settings_of_the_demo(flags: Mapping[str, Any]) -> list[FinetuneSettings]:
    """Return the settings of each method's run.

    Args:
        flags: Settings that were given; `out` is the folder above the run folders, `method` leaves one of the methods.

    Raises:
        InputError: A setting does not fit.
    """
    out = Path(flags.get("out", _OUT))
    methods = [flags["method"]] if "method" in flags else METHODS
    ours = {**_SETTINGS, "task": LANGUAGE, "data": out / _FOLDER}
    prompts = {} if flags.get("prefix_projection") else {"ptuning2": {"prompt_text": _PROMPT}}
    return [
        load_settings(None, {**ours, **prompts.get(method, {}), **flags, "method": method, "out": out / method})
        for method in methods
    ]


def run_demo(runs: Sequence[FinetuneSettings], console: Console) -> Demo | None:
    """Tune SmolLM2-135M-Instruct on BBC News articles, once with the settings of each run.

    Args:
        runs: Of `settings_of_the_demo`.
        console: Where progress is shown.

    Returns:
        What came out; None when Ctrl-C or SIGTERM ended it early.

    Raises:
        InputError: A file, folder or setting cannot be used.
        DivergedError: As `finetune`.
    """
    for settings in runs:
        RunFolder(settings.out, settings.overwrite, settings.resume)  # refuses what stands in the way
    articles = _write_articles(runs[0].out.parent / _FOLDER, runs[0].seed, console.print)
    beginning = " ".join(articles["test"][0].split()[:_BEGINNING])
    model = smollm2_folder(console.print)
    tokenizer = load_tokenizer(model)
    with announce(console, "continuing an article with the model as it is"):
        before = _continue(load_causal_lm(model, dropout=0.0), tokenizer, beginning)
    tuned = []
    for settings in runs:
        console.print(f"tuning with {settings.method}")
        outcome = finetune(settings, console)
        if not outcome.finished:
            return None
        with announce(console, f"continuing the article after {settings.method}"):
            continuation = _continue(outcome.task.network, tokenizer, beginning)
        tuned.append(Tuned(outcome.metrics, continuation, outcome.folder.path))
    return Demo(beginning, before, tuple(tuned))


def perplexity_table(demo: Demo) -> Table:
    """Return each method's perplexity before and after, what it has trained, and how long it took."""
    table = Table(title=f"BBC News articles: {_ARTICLES['test']} that were held out")
    table.add_column("SmolLM2-135M-Instruct tuned with")
    for heading in ("trained parameters", "perplexity before", "after", "change", "time of all steps"):
        table.add_column(heading, justify="right")
    for metrics in (one.metrics for one in demo.tuned):
        before, after = metrics["base_perplexity"], metrics["perplexity"]
        table.add_row(
            metrics["method"],
            f"{metrics['trainable_params']:,} ({metrics['trainable_ratio']:.2%})",
            "-" if before is None else f"{before:.2f}",
            f"{after:.2f}",
            "-" if before is None else f"{after / before - 1:+.0%}",
            f"{metrics['train_seconds']:.0f} s",
        )
    return table


def continuation_table(demo: Demo) -> Table:
    """Return how the model goes on after an article's beginning, before and after each method."""
    table = Table("", demo.beginning + " ...", title="the beginning of a held-out article, continued", show_lines=True)
    table.add_row("before", demo.before)
    for one in demo.tuned:
        table.add_row(f"after {one.metrics['method']}", one.continuation)
    return table


def _write_articles(folder: Path, seed: int, notify: Callable[[str], None]) -> dict[str, list[str]]:
    """Write some articles of each split as JSON lines, and return them."""
    data = load_bbc_articles(bbc_folder(notify), seed)
    make_folder(folder)
    chosen = {}
    for split, count in _ARTICLES.items():
        chosen[split] = [_text(article) for article in _spread(getattr(data, split), count)]
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in chosen[split])
        write_text(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))
    return chosen


def _spread(articles: Sequence[LanguageExample], count: int) -> Sequence[LanguageExample]:
    """Return `count` articles, spread over all, as they are sorted by topic."""
    return [articles[place * len(articles) // count] for place in range(count)]


def _text(article: LanguageExample) -> str:
    assert isinstance(article, Passage)
    return article.text


def _continue(network: Any, tokenizer: Tokenizer, beginning: str) -> str:
    """Return the likeliest words after a beginning."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    ids = tokenizer.tokenize(beginning).ids[None]
    ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    new = generate(network, ids, np.ones_like(ids), _NEW_TOKENS, eos_token_ids=ends)
    return " ".join(tokenizer.decode(new[0]).split())
