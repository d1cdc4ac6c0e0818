"""Native twins for the finished cells of any network: the same cells and Parameters, computed by `mindpet.kernels`.

A cell stays the object that it is and becomes an instance of a child of its class. So all that holds the cell or its
Parameters goes on as before: merging, switching, files, optimizers, wrappers, copies. The native library keeps nothing
of a weight, so that a value that changes is seen at the next call.

A twin asks what its class cannot tell when it is compiled, and in PyNative mode at each call: whether its weight is
trained, its primitives are those of its class and the native kernels are in use. Otherwise it computes as its
class does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore
from mindspore import Tensor, nn, ops

from mindpet import kernels
from mindpet.delta._activations import GELU
from mindpet.delta._dense import DeltaDense
from mindpet.delta._state import refuse_merged_training
from mindpet.delta.dora import DoRADense
from mindpet.delta.lora import LoRADense
from mindpet.kernels.switch import native_kind
from mindpet.tuning.compiled import forget_compiled
from mindpet.tuning.layers import is_dense

__all__ = ["AccelerationReport", "accelerate", "decelerate", "plain_class"]

_SHOWN = 3  # paths that a line of the report names


@dataclass(frozen=True)
class AccelerationReport:
    """What `accelerate` did; printed, it is a short text.

    Attributes:
        replaced: The class of each cell that has a native twin now, or had one before, by its path.
        left: Why each dense layer, normalisation and GELU that has none stayed as it is, by its path.
    """

    replaced: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"native: {count} {kind}" for kind, count in Counter(self.replaced.values()).items()]
        for reason in dict.fromkeys(self.left.values()):
            paths = [path for path, other in self.left.items() if other == reason]
            more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
            lines.append(f"plain: {', '.join(paths[:_SHOWN])}{more}: {reason}")
        return "\n".join(lines) or "no cell of the network has a native twin"

    def in_short(self) -> str:
        """Return one line: how many cells of each class are native now, and how many are plain."""
        native = ", ".join(f"{count} {kind}" for kind, count in Counter(self.replaced.values()).items())
        return f"native {native or 'none'}; plain {len(self.left)} of the kinds that may be native"


def accelerate(network: nn.Cell) -> AccelerationReport:
    """Let the cells of a network compute by native kernels where these give the same result faster.

    That serves a stand-alone CPU and float32. Replaced are dense layers (nn.Dense and those of mindpet.models, and with
    a frozen weight the layers that LoRA, adapters, IA3 and VeRA put in their place), nn.LayerNorm and GELU. Outputs and
    gradients are those of the plain cells, up to rounding: 1e-5 with the kernels 'f32', 1e-2 with 'bf16'. For a frozen
    weight nothing is computed or kept in the backward pass; who asks for its gradient all the same gets zeros.

    The network, its cells and its Parameters stay the same objects, and everything may be done to it as before. Where a
    weight trains again, a primitive is exchanged or sharded, or the kernels are switched off, the twin computes as the
    plain cell does, from the next compilation on. Cells that are attached afterwards are plain: call it again. Second
    derivatives exist without it only.

    Args:
        network: Any network, with something attached or without.

    Returns:
        Which cells have twins, and why the others have none.

    Raises:
        TypeError: `network` is no Cell.
    """
    _check(network)
    replaced, left = {}, {}
    unavailable = "" if kernels.kernels_in_use() != "off" else f"no native kernels: {kernels.describe_kernels()}"
    for path, cell in network.cells_and_names():
        kind = plain_class(cell)
        twin = _find_twin(kind)
        reason = unavailable or (twin.obstacle(cell) if twin else "there is no native twin for it")
        if twin and not reason:
            object.__setattr__(cell, "__class__", _child_of(kind, twin))  # nn.Cell's own keeps parameters and cells
            replaced[path] = kind.__name__
        elif twin or is_dense(cell):
            left[path] = f"{kind.__name__}: {reason}"
    forget_compiled()
    return AccelerationReport(replaced, left)


def decelerate(network: nn.Cell) -> None:
    """Undo `accelerate`: let each cell be of its own class again.

    Args:
        network: Any network.

    Raises:
        TypeError: `network` is no Cell.
    """
    _check(network)
    for _, cell in network.cells_and_names():
        object.__setattr__(cell, "__class__", plain_class(cell))
    forget_compiled()


def plain_class(cell: nn.Cell) -> type[nn.Cell]:
    """Return the class that a cell has, or had before it was accelerated."""
    return type(cell).plain_class if isinstance(cell, _Twin) else type(cell)


def _check(network: Any) -> None:
    if not isinstance(network, nn.Cell):
        raise TypeError(f"the network is a {type(network).__name__}; give a mindspore.nn.Cell")


class _Twin:
    """What a native twin has besides what its class has.

    Attributes:
        plain_class: The class of which it is a child.
        plain: The `construct` of that class, and of delta layers `base_product`.
    """

    plain_class: type[nn.Cell]
    plain: Callable[..., Tensor]

    @staticmethod
    def obstacle(cell: Any) -> str:
        """Say why a cell cannot compute natively; nothing where it can."""
        raise NotImplementedError

    @property
    def is_native(self) -> bool:
        """Whether nothing has changed that speaks against it; a graph takes this as a constant."""
        return not self.obstacle(self)


class _NativeLayerNorm(_Twin):
    @staticmethod
    def obstacle(cell: Any) -> str:
        if cell.begin_norm_axis != -1 or cell.begin_params_axis != -1:
            return "it normalises more than the last axis"
        return _changed(cell, {"layer_norm": ops.LayerNorm})

    def construct(self: Any, x: Tensor) -> Tensor:
        if self.is_native and native_kind(x.dtype) != "off":
            return kernels.layer_norm(x, self.gamma, self.beta, self.epsilon, None, self.trains_scale)
        return self.plain(x)

    @property
    def trains_scale(self: Any) -> bool:
        return self.gamma.requires_grad or self.beta.requires_grad


class _NativeGELU(_Twin):
    @staticmethod
    def obstacle(cell: Any) -> str:
        return "" if isinstance(cell, nn.GELU) else _changed(cell, {"gelu": ops.GeLU})

    def construct(self: Any, x: Tensor) -> Tensor:
        if not self.is_native or native_kind(x.dtype) == "off":
            return self.plain(x)
        if self.is_exact:
            return kernels.gelu(x)
        return kernels.gelu_tanh(x)

    @property
    def is_exact(self: Any) -> bool:
        return isinstance(self, nn.GELU) and self.approximate == "none"


class _NativeDense(_Twin):
    """A dense layer without delta, frozen or trained: rows weight^T + bias, then nn.Dense's activation on rows."""

    computes_as_dense = True

    @staticmethod
    def obstacle(cell: Any) -> str:
        if getattr(cell, "tied_rows", None) is not None:
            return "its logits are those of trained tokens too"
        return _obstacle_of_product(cell)

    def construct(self: Any, x: Tensor) -> Tensor:
        if not self.is_native or native_kind(x.dtype) == "off":
            return self.plain(x)
        if self.trains_weight:
            output = kernels.dense_trained(x, self.weight, self.bias)
        else:
            output = kernels.dense_frozen(x, self.weight, self.bias, self.trains_bias)
        if self.activation_flag:
            output = self.activation(output.reshape((-1, output.shape[-1]))).reshape(output.shape)
        return output

    @property
    def trains_weight(self: Any) -> bool:
        return self.weight.requires_grad

    @property
    def trains_bias(self: Any) -> bool:
        return _trains_bias(self)


class _FrozenBase(_Twin):
    """A delta layer whose product with the frozen weight is native; what the method adds stays as it is."""

    @staticmethod
    def obstacle(cell: Any) -> str:
        return "its weight is trained" if cell.weight.requires_grad else _obstacle_of_product(cell)

    def base_product(self: Any, rows: Tensor) -> Tensor:
        if not self.is_native or native_kind(rows.dtype) == "off":
            return self.plain(rows)
        return kernels.dense_frozen(rows, self.weight, self.bias, self.trains_bias)

    @property
    def trains_bias(self: Any) -> bool:
        return _trains_bias(self)


class _FusedLoRA(_FrozenBase):
    """LoRA with its branch inside the product with the frozen weight, unless dropout comes between."""

    def construct(self: Any, x: Tensor) -> Tensor:
        if not self.is_fused or native_kind(x.dtype) == "off":
            rows = self.to_rows(x)
            return self.finish(self.add(self.base_product(rows), self.branch(rows)), x)
        refuse_merged_training(self)
        scale = self.cast(self.scaling, self.compute_dtype)
        lora_a, lora_b = self.mindpet_delta_lora_a, self.mindpet_delta_lora_b
        output = kernels.lora_dense(x, self.weight, self.bias, lora_a, lora_b, scale, self.trains_bias)
        if self.activation_flag:
            output = self.finish(output.reshape((-1, output.shape[-1])), x)
        return output

    @property
    def is_fused(self: Any) -> bool:
        drops = self.training and self.lora_dropout.p > 0
        branch = {"lora_a_matmul": ops.MatMul, "lora_b_matmul": ops.MatMul, "mul": ops.Mul, "add": ops.Add}
        return self.is_native and not drops and not _changed(self, branch)


def _find_twin(kind: type[nn.Cell]) -> Any:
    """Return what makes a twin of a class, or None where there is none."""
    if kind is LoRADense:
        return _FusedLoRA
    if issubclass(kind, DeltaDense):
        own = issubclass(kind, DoRADense) or kind.base_product is not DeltaDense.base_product
        return None if own else _FrozenBase
    if issubclass(kind, nn.Dense):
        plain = kind.construct is nn.Dense.construct or getattr(kind, "computes_as_dense", False) is True
        return _NativeDense if plain else None
    if kind is nn.LayerNorm:
        return _NativeLayerNorm
    return _NativeGELU if kind in (nn.GELU, GELU) else None


_children: dict[type[nn.Cell], type[nn.Cell]] = {}


def _child_of(kind: type[nn.Cell], twin: type[_Twin]) -> type[nn.Cell]:
    """Return the child of a class that computes natively, always the same one."""
    if kind not in _children:
        plain = DeltaDense.base_product if issubclass(twin, _FrozenBase) else kind.construct
        names = {"plain_class": kind, "plain": plain, "__module__": __name__, "__doc__": kind.__doc__}
        _children[kind] = type(f"Native{kind.__name__}", (twin, kind), names)
    return _children[kind]


def _obstacle_of_product(cell: Any) -> str:
    """Say why rows weight^T + bias cannot be computed natively; nothing where it can."""
    multiplied_in = getattr(cell, "compute_dtype", None) or getattr(cell, "dtype", None) or cell.weight.dtype
    if multiplied_in != mindspore.float32:
        return f"it multiplies in {multiplied_in}, and native kernels in Float32"
    primitives = {"matmul": ops.MatMul} | ({"bias_add": ops.BiasAdd} if cell.has_bias else {})
    if reason := _changed(cell, primitives):
        return reason
    if cell.matmul.transpose_a or not cell.matmul.transpose_b:
        return "its weight has the shape (inputs, outputs)"
    return ""


def _changed(cell: Any, primitives: dict[str, Any]) -> str:
    """Say which primitive of a cell was exchanged or sharded; nothing where none was."""
    for name, kind in primitives.items():
        primitive: Any = getattr(cell, name)
        if type(primitive) is not kind:
            return f"its primitive {name} was exchanged"
        if "in_strategy" in primitive.attrs or "in_layout" in primitive.attrs:
            return f"its primitive {name} is sharded"
    return ""


def _trains_bias(cell: Any) -> bool:
    return cell.bias is not None and cell.bias.requires_grad
