"""What a network has to adapt: its cells by path, and which of them compute as a dense layer does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mindspore import mint, nn

from mindpet.delta._checks import check_dense
from mindpet.tuning.mindformers import is_mindformers_linear
from mindpet.utils.exceptions import InputError

__all__ = ["LayerView", "Network", "is_dense", "view_layer"]


_OTHERS = (nn.Embedding, nn.Conv2d)


class Network:
    """A network's cells by path, read once.

    Args:
        root: The network. It must not change while this object is used.
    """

    def __init__(self, root: nn.Cell) -> None:
        self.root = root
        self.cells: dict[str, nn.Cell] = {path: cell for path, cell in root.cells_and_names() if path}

    @cached_property
    def dense_paths(self) -> list[str]:
        """The paths of the dense layers, in the network's order."""
        return [path for path, cell in self.cells.items() if is_dense(cell)]

    @cached_property
    def embedding_paths(self) -> list[str]:
        """The paths of the embeddings."""
        return [path for path, cell in self.cells.items() if isinstance(cell, nn.Embedding)]

    @cached_property
    def lora_paths(self) -> list[str]:
        """The paths of the layers that LoRA adapts: dense layers, embeddings and convolutions."""
        return [path for path, cell in self.cells.items() if is_dense(cell) or isinstance(cell, _OTHERS)]


@dataclass(frozen=True)
class LayerView:
    """A layer as the delta layers take it.

    Attributes:
        layer: The layer itself; for a dense layer that is no nn.Dense, an nn.Dense with the layer's very own
            Parameters, primitives and activation.
        dtype: In which the layer multiplies; None for the dtype of its weight.
    """

    layer: nn.Cell
    dtype: Any


def is_dense(cell: nn.Cell) -> bool:
    """Tell whether a cell is a dense layer: an nn.Dense, a mint.nn.Linear, or one of another library.

    A cell of another library says so by `computes_as_dense = True` (MindFormers' Linear is known without). It then
    computes `activation(x weight^T + bias)` for rows `x` and has the attributes of nn.Dense by which it does so:
    `in_channels`, `out_channels`, `weight`, `matmul` (an ops.MatMul, whose `transpose_b` may be False for a weight of
    shape (in_channels, out_channels)), `has_bias` and, with it, `bias` and `bias_add`; `activation_flag` and
    `activation`. Where it has `dtype`, it casts rows, weight and bias to that for the product, and the output back to
    the dtype of `x`.
    """
    return (
        isinstance(cell, nn.Dense | mint.nn.Linear)
        or getattr(cell, "computes_as_dense", False) is True
        or is_mindformers_linear(cell)
    )


def view_layer(path: str, cell: nn.Cell) -> LayerView:
    """Return what the delta layers take over from a dense layer, embedding or convolution.

    Raises:
        InputError: The layer computes something of its own, casts by `to_float` or has hooks, which the layer in
            its place would not.
    """
    if own := _find_own_code(cell):
        raise InputError(f"{path} has {own}, which the layer in its place would not run; remove it before attaching")
    if any(cell.get_flags().get(name) for name in ("fp16", "fp32", "bf16")):
        raise InputError(
            f"{path} casts its inputs, by to_float or automatic mixed precision; attach to the network as it was made,"
            " and give compute_dtype"
        )
    if isinstance(cell, _OTHERS):
        return LayerView(cell, None)
    if isinstance(cell, mint.nn.Linear):
        return LayerView(_copy_of(cell, cell.in_features, cell.out_features), None)
    if isinstance(cell, nn.Dense):
        try:
            check_dense(cell)
        except TypeError as error:
            raise InputError(f"{path} cannot be adapted: {error}") from error
        return LayerView(cell, None)
    if getattr(cell, "expert_num", 1) != 1 or getattr(cell, "use_gmm", False):
        raise InputError(f"{path} multiplies for several experts, which no method here can adapt; leave it out")
    return LayerView(_view_of(cell), getattr(cell, "dtype", None))


def _find_own_code(cell: nn.Cell) -> str | None:
    """Return what was put on this very cell and changes what it does: a hook, or a `construct` in the class's place."""
    held = vars(cell)
    if "construct" in held:
        return "a construct of its own"
    hooks = (name for name, value in held.items() if "hook" in name and isinstance(value, dict) and value)
    return "a hook (register_forward_hook and the like)" if any(hooks) else None


def _view_of(cell: nn.Cell) -> nn.Dense:
    """Return an nn.Dense that computes with the Parameters, primitives and activation of a dense-like cell."""
    view = _copy_of(cell, cell.in_channels, cell.out_channels)
    view.matmul = cell.matmul
    if cell.has_bias:
        view.bias_add = cell.bias_add
    names = [(parameter, parameter.name) for parameter in cell.get_parameters()]
    view.activation_flag = cell.activation_flag
    view.activation = cell.activation
    for parameter, name in names:  # assigning an activation renames its parameters
        parameter.name = name
    return view


def _copy_of(cell: nn.Cell, inputs: int, outputs: int) -> nn.Dense:
    """Return an nn.Dense with the Parameters of `cell` and its training flag."""
    view = nn.Dense(inputs, outputs, weight_init="zeros", bias_init="zeros", has_bias=cell.has_bias)
    view.weight = cell.weight
    if cell.has_bias:
        view.bias = cell.bias
    view.set_train(cell.training)
    return view
