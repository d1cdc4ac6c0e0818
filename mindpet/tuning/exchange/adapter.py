"""An adapter outside a network: what every file becomes before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mindpet.tuning.config import PeftConfig
from mindpet.tuning.exchange.record import Record, explain
from mindpet.tuning.exchange.values import FLOATS, HostTensor, digest
from mindpet.tuning.registry import METHODS
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["Adapter", "check_tensors", "dump_methods", "find_bad_values", "list_some", "parse_methods"]


@dataclass(frozen=True)
class Adapter:
    """An adapter as a file or folder holds it.

    Attributes:
        path: Where it was read, for messages.
        configs: What to attach; None where the file does not say.
        tensors: By canonical name.
        record: What proves that it was applied; None where the file has none.
    """

    path: Path
    configs: tuple[PeftConfig, ...] | None
    tensors: dict[str, HostTensor]
    record: Record | None = None


def dump_methods(configs: Sequence[PeftConfig]) -> list[Any]:
    """Return configurations in a form that JSON has, one block a method."""
    return [{"method": config.method, **config.model_dump(mode="json")} for config in configs]


def parse_methods(path: Path, blocks: Sequence[Any]) -> tuple[PeftConfig, ...]:
    """Read what `dump_methods` gives. A name only selects among the known methods.

    Raises:
        InputError: An unknown method or field, or a value that its field does not take.
    """
    return tuple(_parse_method(path, block) for block in blocks)


def check_tensors(adapter: Adapter) -> None:
    """Check an adapter's tensors by themselves, before there is a network.

    Raises:
        InputError: There is none, or one is no floating tensor, holds NaN or infinite numbers, or differs from its
            checksum; or the record lists others.
    """
    if not adapter.tensors:
        raise InputError(f"{adapter.path} holds no tensor of an adapter; save the adapter again.")
    problems = find_bad_values(adapter.tensors)
    if adapter.record:
        sums = adapter.record.tensors
        problems += [f"{name} is missing" for name in sorted(sums.keys() - adapter.tensors.keys())]
        problems += [f"{name} is not in the record" for name in sorted(adapter.tensors.keys() - sums.keys())]
        common = sorted(sums.keys() & adapter.tensors.keys())
        problems += [
            f"{name} differs from its checksum" for name in common if digest(adapter.tensors[name]) != sums[name]
        ]
    if problems:
        raise InputError(f"{adapter.path} cannot be used: {list_some(problems)}. Save or fetch the adapter again.")


def find_bad_values(tensors: Mapping[str, HostTensor]) -> list[str]:
    """Say of each tensor that no adapter may hold what is wrong with it."""
    return [
        f"{name} is {tensor.dtype}, and adapters are {', '.join(FLOATS[:-1])} or {FLOATS[-1]}"
        if tensor.dtype not in FLOATS
        else f"{name} holds NaN or infinite numbers"
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOATS or not np.isfinite(tensor.values).all()
    ]


def list_some(problems: Sequence[str], most: int = 5) -> str:
    """Join the first few of many problems, and count the rest."""
    rest = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + rest


def _parse_method(path: Path, block: Any) -> PeftConfig:
    name = block.get("method") if isinstance(block, Mapping) else None
    if not isinstance(name, str) or name not in METHODS:
        nearest = nearest_names(name, METHODS) if isinstance(name, str) else []
        hint = f" Did you mean {nearest[0]}?" if nearest else ""
        raise InputError(f"{path}: the method {name!r} is unknown; the methods are {', '.join(METHODS)}.{hint}")
    fields = {key: value for key, value in block.items() if key != "method"}
    try:
        return METHODS[name].config(**fields)
    except ValidationError as error:
        raise InputError(f"{path}: {name} has a wrong configuration ({explain(error)}); correct the field.") from error
