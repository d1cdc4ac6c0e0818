"""The model card: what an adapter is, for people and for the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mindpet import __version__

__all__ = ["Card", "write_card"]

Description = str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Card:
    """What the card says.

    Attributes:
        methods: The configurations, one block a method.
        trained: The number of the adapter's parameters.
        total: The number of all parameters of the network.
        base: What it was trained on.
        data: What it was trained with.
        metrics: What it reached.
    """

    methods: Sequence[Mapping[str, Any]]
    trained: int
    total: int
    base: str | None
    data: Description
    metrics: Description


def write_card(card: Card) -> str:
    """Return the card as Markdown with the metadata that the Hub reads."""
    names = [str(block["method"]) for block in card.methods]
    metadata: dict[str, Any] = {"library_name": "mindpet", "tags": ["mindspore", "peft", *names]}
    if card.base:
        metadata["base_model"] = card.base
    sections = [
        f"---\n{yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)}---",
        f"# Adapter: {', '.join(names)}",
        "Load it with `mindpet.load_adapter(net, folder)`, which checks that it belongs to the network and that it was "
        "applied.",
        _section("Base", card.base),
        _section("Parameters", f"{card.trained:,} of {card.total:,} ({card.trained / card.total:.3%})"),
        *(_section(f"Method: {block['method']}", _without(block, "method")) for block in card.methods),
        _section("Data", card.data),
        _section("Metrics", card.metrics),
        f"Written by MindPet {__version__}.",
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, content: Description) -> str:
    if isinstance(content, Mapping):
        rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in content.items()]
        content = "\n".join(["| | |", "|---|---|", *rows]) if rows else None
    return f"## {title}\n\n{content or 'Not given.'}"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.replace("|", "\\|").split())


def _without(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}
