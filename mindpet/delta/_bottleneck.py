"""What both adapter layers share: flatten, pass a bottleneck in the compute dtype, add the input, restore."""

from typing import Any

from mindspore import Tensor, nn, ops

from mindpet.delta._checks import check_dtype, check_non_linearity

__all__ = ["BottleneckLayer"]


class BottleneckLayer(nn.Cell):
    """x + scaling * bottleneck(x), where a child's `bottleneck` maps (rows, hidden_size) to the same shape.

    `scaling` is 1, and costs nothing as long as it is a number; `hold_scale` puts a Parameter there.
    """

    def __init__(self, non_linearity: str, param_init_type: Any, compute_dtype: Any) -> None:
        check_non_linearity("non_linearity", non_linearity)
        check_dtype("param_init_type", param_init_type)
        check_dtype("compute_dtype", compute_dtype)
        super().__init__()
        self.compute_dtype = compute_dtype
        # Softmax2d works on the axes before the last two, so that they must stay.
        self.flattens = non_linearity != "softmax2d"
        self.scaling: Any = 1.0
        self.scale_mul = ops.Mul()
        self.residual_add = ops.Add()
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()
        self.shape_op = ops.Shape()

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, hidden_size), in the shape and dtype of `x`."""
        shape = self.shape_op(x)
        rows = self.reshape(x, (-1, shape[-1])) if self.flattens and len(shape) != 2 else x
        change = self.cast(self.bottleneck(self.cast(rows, self.compute_dtype)), x.dtype)
        if not isinstance(self.scaling, float):
            change = self.scale_mul(change, self.cast(self.scaling, x.dtype))
        output = self.residual_add(rows, change)
        return self.reshape(output, shape) if self.flattens and len(shape) != 2 else output
