"""What to attach to a network: one configuration a method."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoraConfig"]


class LoraConfig(BaseModel):
    """LoRA on chosen layers (arXiv 2106.09685): `W x` becomes `W x + lora_alpha / r * B A x`.

    The fields have PEFT's names.

    Attributes:
        r: The rank, the number of rows of `A` and of columns of `B`.
        lora_alpha: The scale's numerator.
        lora_dropout: Probability with which an input element of the branch is dropped in training, in [0, 1).
        target_modules: Names or path suffixes of the `nn.Dense` cells to adapt, such as `query` or
            `attention.self.query`.
        modules_to_save: Names or path suffixes of cells that are trained and saved whole, such as a new head.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(default=8, gt=0)
    lora_alpha: float = Field(default=8, gt=0, allow_inf_nan=False)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] = ("query", "value")
    modules_to_save: tuple[str, ...] = ()
