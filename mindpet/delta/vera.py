"""VeRA: one frozen random pair of matrices for a whole network, and two trained vectors a layer (arXiv:2310.11454)."""

import math
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.delta._checks import check_dtype, check_float_rate, check_not_negative_int, check_positive_int
from mindpet.delta._dense import DeltaDense, make_parameter
from mindpet.delta._host import host_values
from mindpet.delta._shard import shard_methods
from mindpet.delta._state import refuse_merged_training
from mindpet.utils.names import STATE_MARK
from mindpet.utils.version_control import get_dropout

__all__ = ["VeRADense", "make_projection"]

Projection = tuple[Parameter, Parameter]


def make_projection(in_channels: int, out_channels: int, vera_rank: int, seed: int = 0) -> Projection:
    """Return the frozen pair A and B that the VeRA layers of a network share, as it follows from a seed.

    The numbers are the same on every device, and those that PEFT makes from the same `projection_prng_key`: the 32-bit
    Mersenne Twister MT19937, seeded with `seed` mod 2^32, is drawn from once for each entry, row by row, first for A
    and then for B. A draw n gives the entry bound * (2 (n mod 2^24) / 2^24 - 1), rounded once to float32, with
    bound = sqrt(6 / fan) and fan = in_channels for A, vera_rank for B (He's uniform initialisation).

    Args:
        in_channels: the largest number of input channels among the layers.
        out_channels: the largest number of output channels among them.
        vera_rank: the rank.
        seed: the seed, not negative.

    Returns:
        Two float32 Parameters without gradient: `mindpet_state_vera_a` (vera_rank, in_channels) and
        `mindpet_state_vera_b` (out_channels, vera_rank). They may be given other values.

    Raises:
        TypeError: an argument is no int.
        NotPositiveError: a size is 0 or negative (a TypeError and a ValueError).
        ValueError: `seed` is negative.
    """
    check_positive_int("in_channels", in_channels)
    check_positive_int("out_channels", out_channels)
    check_positive_int("vera_rank", vera_rank)
    check_not_negative_int("seed", seed)
    generator = np.random.RandomState(seed % 2**32)
    a = _he_uniform(generator, vera_rank, in_channels)
    b = _he_uniform(generator, out_channels, vera_rank)
    return (
        Parameter(Tensor(a), name=f"{STATE_MARK}vera_a", requires_grad=False),
        Parameter(Tensor(b), name=f"{STATE_MARK}vera_b", requires_grad=False),
    )


def _he_uniform(generator: np.random.RandomState, rows: int, fan: int) -> np.ndarray:
    share = (generator.randint(0, 2**32, (rows, fan), np.uint32) % 2**24) * 2.0**-24
    bound = np.float64(np.float32(math.sqrt(3) * (math.sqrt(2) / math.sqrt(fan))))
    return (share * (2 * bound) - bound).astype(np.float32)


class VeRADense(DeltaDense):
    r"""A dense layer with a VeRA branch: a frozen random product, scaled on its way by two trained vectors.

    outputs = activation(x weight^T + bias + lambda_b * ((lambda_d * (dropout(x) A^T)) B^T))

    A (vera_rank, in_channels) and B (out_channels, vera_rank) are the first columns and rows of the `projection` that
    all layers of a network share. Only `mindpet_delta_vera_lambda_b` (out_channels,) and `mindpet_delta_vera_lambda_d`
    (vera_rank,) are meant to be trained; `freeze_delta(network, 'vera')` freezes the rest. lambda_b is zero at first,
    which changes nothing.

    The branch is multiplied by the attribute `scaling`, 1 at first. Who must change it after the first call assigns a
    Parameter without gradient there, before that call.

    Args:
        in_channels (int): the size of the last axis of the input.
        out_channels (int): the size of the last axis of the output.
        vera_rank (int): the size between A and B. It costs one trained number a layer, so that it is larger than in
            LoRA: PEFT's default is 256.
        vera_dropout (float): the rate at which the branch drops its input in training, in [0, 1). Default: 0.0.
        d_initial (Union[Tensor, str, Initializer, Number]): how lambda_d starts. Default: 0.1.
        projection (tuple[Parameter, Parameter]): A and B as `make_projection` returns them, with `vera_rank` rows and
            columns, and as many channels as the layer or more. Default: None, a pair of this layer's own from seed 0.
        param_init_type (dtype): the dtype of the two vectors: float32 (default), float16 or bfloat16.
        compute_dtype (dtype): the dtype of the products: float16 (default), float32 or bfloat16.
        weight_init (Union[Tensor, str, Initializer, Number]): how the weight starts. Default: 'normal'.
        bias_init (Union[Tensor, str, Initializer, Number]): how the bias starts. Default: 'zeros'.
        has_bias (bool): whether there is a bias. Default: True.
        activation (Union[str, Cell, Primitive, None]): the activation, by name or itself. Default: None.

    Inputs:
        - **x** (Tensor) - of shape (*, in_channels), with a floating dtype.

    Outputs:
        Tensor of shape (*, out_channels), in the dtype of `x`.

    Raises:
        TypeError: `in_channels`, `out_channels` or `vera_rank` is no int; `vera_dropout` is no float; `projection` is
            no pair of Parameters; `has_bias` is no bool; `activation` is no str, Cell, Primitive or None; an
            initializer is no Tensor, str, Initializer or number; a dtype is none of the three.
        NotPositiveError: `in_channels`, `out_channels` or `vera_rank` is 0 or negative (a TypeError and a ValueError).
        ValueError: `vera_dropout` lies outside [0, 1); `projection` is too small or of another rank; an initializer is
            a Tensor of the wrong shape or the name of none.
        KeyError: `activation` is a str that names no activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        vera_rank: int,
        vera_dropout: float = 0.0,
        d_initial: Any = 0.1,
        projection: Projection | None = None,
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = mstype.float16,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        has_bias: bool = True,
        activation: Any = None,
    ) -> None:
        check_positive_int("vera_rank", vera_rank)
        check_float_rate("vera_dropout", vera_dropout)
        check_dtype("param_init_type", param_init_type)
        super().__init__(in_channels, out_channels, weight_init, bias_init, has_bias, activation, compute_dtype)
        if projection is None:
            projection = make_projection(in_channels, out_channels, vera_rank)
        _check_projection(projection, in_channels, out_channels, vera_rank)
        self.mindpet_delta_vera_lambda_b = make_parameter(
            "lambda_b", "zeros", (out_channels,), param_init_type, "mindpet_delta_vera_lambda_b"
        )
        self.mindpet_delta_vera_lambda_d = make_parameter(
            "d_initial", d_initial, (vera_rank,), param_init_type, "mindpet_delta_vera_lambda_d"
        )
        self.mindpet_state_vera_a, self.mindpet_state_vera_b = projection
        self.vera_rank = vera_rank
        self.scaling: Any = 1.0
        self.vera_dropout = get_dropout(vera_dropout)
        # Without a strategy, data parallelism would cut these matrices, which have no batch.
        self.vera_a_slice = ops.Slice().shard(((1, 1),))
        self.vera_b_slice = ops.Slice().shard(((1, 1),))
        self.vera_a_matmul = ops.MatMul(transpose_b=True)
        self.vera_b_matmul = ops.MatMul(transpose_b=True)
        self.lambda_d_mul = ops.Mul()
        self.lambda_b_mul = ops.Mul()
        self.add = ops.Add()

    @classmethod
    def from_dense(
        cls,
        dense: nn.Dense,
        vera_rank: int,
        vera_dropout: float = 0.0,
        d_initial: Any = 0.1,
        projection: Projection | None = None,
        param_init_type: Any = mstype.float32,
        compute_dtype: Any = None,
    ) -> "VeRADense":
        """Return a layer that stands in for `dense`: with its own Parameters, primitives, strategies and activation.

        Args:
            dense: the layer to replace; it is left as it is.
            vera_rank: as for the class, like the other arguments.
            vera_dropout: the rate of the branch's dropout.
            d_initial: how lambda_d starts.
            projection: the pair that the layers of a network share.
            param_init_type: the dtype of the two vectors.
            compute_dtype: the dtype of the products; None takes the dtype of `dense.weight`.

        Raises:
            TypeError: `dense` is no nn.Dense or computes something of its own; and all that the class raises.
        """
        layer = cls(
            vera_rank=vera_rank,
            vera_dropout=vera_dropout,
            d_initial=d_initial,
            projection=projection,
            param_init_type=param_init_type,
            **cls.base_arguments(dense, compute_dtype),
        )
        shared = layer.mindpet_state_vera_a.name, layer.mindpet_state_vera_b.name
        layer.take_over(dense)
        if projection is not None:  # what is shared belongs to no layer, by its name too
            layer.mindpet_state_vera_a.name, layer.mindpet_state_vera_b.name = shared
        return layer

    def construct(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` of shape (*, in_channels)."""
        rows = self.to_rows(x)
        return self.finish(self.add(self.base_product(rows), self.branch(rows)), x)

    def branch(self, rows: Tensor) -> Tensor:
        """Return scaling * lambda_b * ((lambda_d * (dropout(rows) A^T)) B^T), of shape (rows, out_channels)."""
        refuse_merged_training(self)
        a = self.vera_a_slice(self.mindpet_state_vera_a, (0, 0), (self.vera_rank, self.in_channels))
        b = self.vera_b_slice(self.mindpet_state_vera_b, (0, 0), (self.out_channels, self.vera_rank))
        lambda_d = self.cast(self.mindpet_delta_vera_lambda_d, self.compute_dtype)
        lambda_b = self.cast(self.mindpet_delta_vera_lambda_b, mstype.float32) * self.scaling
        hidden = self.vera_a_matmul(self.vera_dropout(rows), self.cast(a, self.compute_dtype))  # (rows, vera_rank)
        output = self.vera_b_matmul(self.lambda_d_mul(hidden, lambda_d), self.cast(b, self.compute_dtype))
        return self.lambda_b_mul(output, self.cast(lambda_b, self.compute_dtype))

    def merged_values(self) -> dict[str, np.ndarray]:
        """Return the values with which the base layer alone computes what this layer does, by attribute, in float32.

        The weight becomes weight + scaling * (lambda_b * B) (lambda_d * A), each vector along the rows of its matrix.
        """
        a = host_values(self.mindpet_state_vera_a)[:, : self.in_channels]
        b = host_values(self.mindpet_state_vera_b)[: self.out_channels]
        lambda_b = host_values(self.scaling) * host_values(self.mindpet_delta_vera_lambda_b)
        change = (lambda_b[:, None] * b) @ (host_values(self.mindpet_delta_vera_lambda_d)[:, None] * a)
        return {"weight": host_values(self.weight) + (change if self.matmul.transpose_b else change.T)}

    shard, shard_like = shard_methods(
        {
            "strategy_org_dense_matmul": ("matmul", "ni,oi"),
            "strategy_org_bias_add": ("bias_add", "no,o"),
            "strategy_vera_dropout": ("vera_dropout.dropout", "ni"),
            "strategy_vera_a_slice": ("vera_a_slice", "--"),
            "strategy_vera_a_matmul": ("vera_a_matmul", "ni,ri"),
            "strategy_lambda_d_mul": ("lambda_d_mul", "nr,r"),
            "strategy_vera_b_slice": ("vera_b_slice", "--"),
            "strategy_vera_b_matmul": ("vera_b_matmul", "nr,or"),
            "strategy_lambda_b_mul": ("lambda_b_mul", "no,o"),
            "strategy_vera_add": ("add", "no,no"),
            "strategy_activation": ("activation", "no"),
        }
    )


def _check_projection(projection: Any, in_channels: int, out_channels: int, vera_rank: int) -> None:
    pair = projection if isinstance(projection, tuple) else ()
    if len(pair) != 2 or not all(isinstance(part, Parameter) for part in pair):
        raise TypeError(
            f"`projection` is {projection!r} ({type(projection).__name__}); accepted is a pair of Parameters. "
            "Pass what make_projection returns."
        )
    (a_rank, columns), (rows, b_rank) = pair[0].shape, pair[1].shape
    if a_rank != vera_rank or b_rank != vera_rank or columns < in_channels or rows < out_channels:
        raise ValueError(
            f"`projection` holds the shapes {pair[0].shape} and {pair[1].shape}; accepted is ({vera_rank}, "
            f"{in_channels} or more) and ({out_channels} or more, {vera_rank}). Make it for the largest of the layers."
        )
