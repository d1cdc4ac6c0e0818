"""What all dense layers of the delta methods share: base product, bias, activation, dtypes and leading shape."""

from typing import Any

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from mindspore.common.initializer import initializer

from mindpet.delta._activations import make_activation, takes_rows
from mindpet.delta._checks import (
    check_activation,
    check_bool,
    check_dense,
    check_dtype,
    check_initializer,
    check_positive_int,
)

__all__ = ["DeltaDense", "make_parameter", "replace_parameter"]


def make_parameter(argument: str, init: Any, shape: tuple[int, ...], dtype: Any, name: str) -> Parameter:
    """Return a Parameter of `shape` and `dtype` that starts as the constructor's `argument` says."""
    check_initializer(argument, init, shape)
    if isinstance(init, Tensor):
        values = init.init_data() if init.has_init else init  # a Tensor made with `init=` holds no values yet
        return Parameter(values.astype(dtype), name=name)
    return Parameter(initializer(init, shape, dtype), name=name)


def replace_parameter(cell: nn.Cell, attribute: str, argument: str, init: Any) -> None:
    """Put a new Parameter in the place of `cell.<attribute>` that starts as `argument` says; all else stays."""
    old = getattr(cell, attribute)
    setattr(cell, attribute, make_parameter(argument, init, tuple(old.shape), old.dtype, old.name))


class DeltaDense(nn.Dense):
    """activation(x weight^T + bias), with the products in `compute_dtype` and the output in the dtype of `x`.

    Its children put something between the steps `to_rows`, `base_product` and `finish`, or after `dense_output`. The
    primitives `matmul` and `bias_add`, the parameters `weight` and `bias` and the `activation` are those of nn.Dense
    and may be assigned. `merged` says that the weight holds what a child adds, which must not be trained then.
    """

    merged = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        weight_init: Any,
        bias_init: Any,
        has_bias: bool,
        activation: Any,
        compute_dtype: Any,
        param_init_type: Any = mstype.float32,
    ) -> None:
        check_positive_int("in_channels", in_channels)
        check_positive_int("out_channels", out_channels)
        check_initializer("weight_init", weight_init, (out_channels, in_channels))
        check_initializer("bias_init", bias_init, (out_channels,))
        check_bool("has_bias", has_bias)
        check_activation("activation", activation)
        check_dtype("compute_dtype", compute_dtype)
        check_dtype("param_init_type", param_init_type)
        activation = make_activation(activation)
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, dtype=param_init_type)
        self.compute_dtype = compute_dtype
        self.activates_rows = takes_rows(activation)
        self.cast = ops.Cast()

    @staticmethod
    def base_arguments(dense: nn.Dense, compute_dtype: Any) -> dict[str, Any]:
        """Return the constructor arguments of a layer that has the shape of `dense` and is about to take it over.

        Args:
            dense: the layer that is to be taken over.
            compute_dtype: the dtype of the products; None stands for the dtype of `dense.weight`.

        Raises:
            TypeError: `dense` is no nn.Dense, or a child of it that computes something else.
        """
        check_dense(dense)
        return {
            "in_channels": dense.in_channels,
            "out_channels": dense.out_channels,
            "weight_init": "zeros",
            "bias_init": "zeros",
            "has_bias": dense.has_bias,
            "activation": None,
            "compute_dtype": dense.weight.dtype if compute_dtype is None else compute_dtype,
        }

    def take_over(self, dense: nn.Dense) -> None:
        """Use the Parameters, primitives (with their shard strategies), activation and training flag of `dense` itself.

        The added parameters are named beside the weight: `block.query.weight` puts them under `block.query`.
        """
        names = [(parameter, parameter.name) for parameter in dense.get_parameters()]
        prefix = dense.weight.name.rpartition(".")[0]
        added = [parameter for name, parameter in self.parameters_and_names() if name not in ("weight", "bias")]
        for parameter in added:
            parameter.name = f"{prefix}.{parameter.name}" if prefix else parameter.name
        self.matmul = dense.matmul
        self.weight = dense.weight
        if dense.has_bias:
            self.bias = dense.bias
            self.bias_add = dense.bias_add
        self.activation = dense.activation
        self.activation_flag = dense.activation_flag
        self.activates_rows = takes_rows(dense.activation)
        for parameter, name in names:  # assigning an activation renames its parameters
            parameter.name = name
        self.set_train(dense.training)

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        return self.dense_output(x)

    def dense_output(self, x: Tensor) -> Tensor:
        """Return activation(x weight^T + bias), of shape (*, out_channels) and the dtype of `x`."""
        return self.finish(self.base_product(self.to_rows(x)), x)

    def to_rows(self, x: Tensor) -> Tensor:
        """Return `x` of shape (*, in_channels) as (rows, in_channels) in the compute dtype."""
        shape = self.shape_op(x)
        if len(shape) != 2:
            x = self.reshape(x, (-1, shape[-1]))
        return self.cast(x, self.compute_dtype)

    def base_product(self, rows: Tensor) -> Tensor:
        """Return rows weight^T + bias, of shape (rows, out_channels), before the activation."""
        output = self.matmul(rows, self.cast(self.weight, self.compute_dtype))
        if self.has_bias:
            output = self.bias_add(output, self.cast(self.bias, self.compute_dtype))
        return output

    def finish(self, rows: Tensor, x: Tensor) -> Tensor:
        """Apply the activation to `rows` and return them with the leading shape and the dtype of the input `x`."""
        shape = self.shape_op(x)
        if self.activation_flag and self.activates_rows:
            rows = self.activation(rows)
        if len(shape) != 2:
            rows = self.reshape(rows, shape[:-1] + (self.shape_op(rows)[-1],))  # noqa: RUF005, graph mode knows only +
        if self.activation_flag and not self.activates_rows:
            rows = self.activation(rows)
        return self.cast(rows, x.dtype)
