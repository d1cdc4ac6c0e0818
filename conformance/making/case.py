"""What the manifest says of a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Case", "inputs_of"]

TOLERANCE = 5e-5  # about ten times what rounding in float32 leaves between two libraries


@dataclass(frozen=True)
class Case:
    """One case of the manifest.

    Attributes:
        name: Its name, and that of its folder.
        method: What was attached: 'none' for a base by itself.
        variant: Which form of it.
        base: The name of the base model.
        origin: Which library has written the adapter, and its version.
        covers: What a reader may get wrong; of a damaged adapter the reason says it.
        reason: Why the adapter must be refused; None where it must be loaded.
    """

    name: str
    method: str
    variant: str
    base: str
    origin: str
    covers: str | None = None
    reason: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return the case's entry in the manifest."""
        common = {
            "name": self.name,
            "method": self.method,
            "variant": self.variant,
            "base": f"bases/{self.base}",
            "inputs": f"inputs/{inputs_of(self.base)}.json",
            "adapter": None if self.method == "none" else f"adapters/{self.name}",
            "origin": self.origin,
        }
        if self.reason is not None:
            return common | {"expect": "refuse", "reason": self.reason}
        expected = {"expected": f"expected/{self.name}.json", "tolerance": TOLERANCE}
        return common | {"covers": self.covers, "expect": "logits"} | expected


def inputs_of(base: str) -> str:
    """Return the name of the inputs that a base is run on."""
    return "classifier" if base.startswith("bert") else "decoder"
