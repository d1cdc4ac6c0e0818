"""The two trained factors that LoRA adds to a layer other than a dense one, and where their names come from."""

from typing import Any

from mindspore import Parameter, nn

from mindpet.delta._checks import check_dtype, check_nonzero_number, check_positive_int
from mindpet.delta._dense import make_parameter

__all__ = ["add_factors", "check_factors", "name_beside"]


def check_factors(lora_rank: Any, lora_alpha: Any, param_init_type: Any, compute_dtype: Any) -> None:
    """Refuse a rank, scale or dtype as LoRADense does (TypeError, NotPositiveError, ValueError)."""
    check_positive_int("lora_rank", lora_rank)
    check_nonzero_number("lora_alpha", lora_alpha)
    check_dtype("param_init_type", param_init_type)
    check_dtype("compute_dtype", compute_dtype)


def add_factors(
    cell: Any,
    lora_rank: int,
    lora_alpha: float,
    lora_a: tuple[Any, tuple[int, ...]],
    lora_b: tuple[Any, tuple[int, ...]],
    param_init_type: Any,
) -> None:
    """Give `cell` both factors, each from its initializer and shape, and the scale lora_alpha / lora_rank."""
    for letter, (init, shape) in (("a", lora_a), ("b", lora_b)):
        name = f"mindpet_delta_lora_{letter}"
        setattr(cell, name, make_parameter(f"lora_{letter}_init", init, shape, param_init_type, name))
    cell.lora_rank = lora_rank
    cell.lora_alpha = lora_alpha
    cell.scaling = lora_alpha / lora_rank


def name_beside(cell: nn.Cell, base: Parameter) -> None:
    """Name the factors of `cell` beside `base`: `block.conv.weight` puts them under `block.conv`."""
    prefix = base.name.rpartition(".")[0]
    for parameter in (cell.mindpet_delta_lora_a, cell.mindpet_delta_lora_b):
        parameter.name = f"{prefix}.{parameter.name}" if prefix else parameter.name
