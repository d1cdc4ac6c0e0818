"""What loading an adapter has done, and what proves it."""

from __future__ import annotations

from dataclasses import dataclass

from mindpet.tuning.exchange.probe import Outcome

__all__ = ["LoadReport", "UnverifiedAdapterWarning"]


class UnverifiedAdapterWarning(UserWarning):
    """An adapter without a probe was loaded: nothing proves that it gives the outputs that it was trained to give."""


@dataclass(frozen=True)
class LoadReport:
    """What loading an adapter has done, and what proves it. As text it is one sentence.

    Attributes:
        path: What was loaded.
        methods: The names of the methods.
        attached: Whether loading attached them, because the network was plain.
        outcome: How the probes came out; None where the file has none.
        rounded_to: Dtypes that tensors of the base have been cast to since the adapter was saved.
        has_effect: Whether the adapter changes anything; one that was never trained may change nothing yet.
    """

    path: str
    methods: tuple[str, ...]
    attached: bool
    outcome: Outcome | None
    rounded_to: tuple[str, ...]
    has_effect: bool

    @property
    def is_verified(self) -> bool:
        """Whether a probe proves that the adapter was applied to its own base."""
        return self.outcome is not None

    def __str__(self) -> str:
        parts = [f"{', '.join(self.methods)} applied from {self.path}"]
        if self.outcome is None:
            parts.append("unverified: the file has no probe")
        else:
            parts.append(
                f"largest difference {self.outcome.difference:.1e} (allowed {self.outcome.tolerance:.1e}) in"
                f" {self.outcome.place}"
            )
            parts.append(f"{self.outcome.cells} cells {'and the whole network ' * self.outcome.ran_network}run")
        if self.rounded_to:
            parts.append(f"the base was cast to {', '.join(self.rounded_to)}")
        if not self.has_effect:
            parts.append("no effect yet: the adapter changes nothing, as before training")
        return "; ".join(parts)
