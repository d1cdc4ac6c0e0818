"""Each error line of the specification, and what is not written there but obvious: the documented type is raised."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.common.initializer import Normal

from mindpet.delta import (
    AdapterDense,
    AdapterLayer,
    DoRADense,
    LoRADense,
    LowRankAdapterDense,
    LowRankAdapterLayer,
    LowRankLinear,
    PiSSADense,
    PrefixEncoder,
    PrefixLayer,
    VeRADense,
    make_projection,
)
from mindpet.utils.exceptions import NotPositiveError

NAN, INFINITY = float("nan"), float("inf")

LORA_CLASSES = (LoRADense, DoRADense, PiSSADense)
_LORA = {"in_channels": 6, "out_channels": 4, "lora_rank": 2, "lora_alpha": 3, "lora_dropout": 0.1}
VALID = {
    **dict.fromkeys(LORA_CLASSES, _LORA),
    VeRADense: {"in_channels": 6, "out_channels": 4, "vera_rank": 3, "vera_dropout": 0.1},
    AdapterDense: {"in_channels": 6, "out_channels": 4, "bottleneck_size": 3},
    AdapterLayer: {"hidden_size": 6, "bottleneck_size": 3},
    LowRankAdapterDense: {"in_channels": 6, "out_channels": 4, "reduction_factor": 2},
    LowRankAdapterLayer: {"hidden_size": 6, "reduction_factor": 2},
    LowRankLinear: {"in_channels": 6, "out_channels": 4},
    PrefixLayer: {"prefix_token_num": 4, "batch_size": 2, "num_heads": 2, "hidden_dim": 8, "embed_dim": 5},
    PrefixEncoder: {
        "pre_seq_len": 3,
        "num_layers": 2,
        "num_heads": 2,
        "kv_channels": 4,
        "prefix_projection": True,
        "projection_dim": 5,
        "dropout_prob": 0.1,
    },
}
BASE_CLASSES = (*LORA_CLASSES, VeRADense, AdapterDense, LowRankAdapterDense)
NAMED_CLASSES = (AdapterDense, AdapterLayer, LowRankAdapterDense, LowRankAdapterLayer)

NO_INTS = (2.0, "2", None, True, np.int64(2), Tensor(2), [2])
NOT_POSITIVE = (0, -1)
NO_BOOLS = (1, 0, "True", None, np.True_)
NO_DTYPES = ("float32", np.float32, float, mstype.int32, mstype.float64, None, 32)


def _zeros(*shape):
    return Tensor(np.zeros(shape, np.float32))


ROWS: list[tuple] = []


def _expect(error, classes, argument, *values):
    """Add one row for each class and value: the argument with that value raises the error."""
    for cell in classes if isinstance(classes, tuple) else (classes,):
        ROWS.extend((error, cell, argument, value) for value in values)


# Sizes: 0 and negative numbers are documented as TypeError, as ValueError or as both; here they are always both.
SIZES = {
    **dict.fromkeys(LORA_CLASSES, ("in_channels", "out_channels", "lora_rank")),
    VeRADense: ("in_channels", "out_channels", "vera_rank"),
    AdapterDense: ("in_channels", "out_channels", "bottleneck_size"),
    AdapterLayer: ("hidden_size", "bottleneck_size"),
    LowRankAdapterDense: ("in_channels", "out_channels", "reduction_factor", "low_rank_size"),
    LowRankAdapterLayer: ("hidden_size", "reduction_factor", "low_rank_size"),
    LowRankLinear: ("in_channels", "out_channels", "rank"),
    PrefixLayer: ("prefix_token_num", "batch_size", "num_heads", "hidden_dim", "embed_dim", "mid_dim"),
    PrefixEncoder: ("pre_seq_len", "num_layers", "num_heads", "kv_channels", "projection_dim"),
}
for _cell, _arguments in SIZES.items():
    for _argument in _arguments:
        _expect(TypeError, _cell, _argument, *NO_INTS, *NOT_POSITIVE)
        _expect(ValueError, _cell, _argument, *NOT_POSITIVE)

# What all dense layers document alike.
_expect(TypeError, (*BASE_CLASSES, LowRankLinear), "has_bias", *NO_BOOLS)
_expect(TypeError, BASE_CLASSES, "activation", 1, True, nn.ReLU, ["relu"], len)
_expect(KeyError, BASE_CLASSES, "activation", "no_activation", "ReLU", "", "threshold")
_expect(TypeError, BASE_CLASSES, "weight_init", None, [1.0], {}, True, 1j, np.zeros((4, 6), np.float32))
_expect(TypeError, BASE_CLASSES, "bias_init", None, [1.0], {}, True, 1j, np.zeros(4, np.float32))
_expect(ValueError, BASE_CLASSES, "weight_init", "no_initializer", "", NAN, INFINITY)
_expect(ValueError, BASE_CLASSES, "bias_init", "no_initializer", "", NAN, -INFINITY)
_expect(ValueError, BASE_CLASSES, "weight_init", _zeros(24), _zeros(4, 6, 1), _zeros(5, 6), _zeros(4, 5), _zeros(6, 4))
_expect(ValueError, BASE_CLASSES, "bias_init", _zeros(1, 4), _zeros(5), Tensor(0.0))
_expect(TypeError, (*BASE_CLASSES, *NAMED_CLASSES, LowRankLinear), "param_init_type", *NO_DTYPES)
_expect(TypeError, (*BASE_CLASSES, *NAMED_CLASSES, LowRankLinear), "compute_dtype", *NO_DTYPES)
_expect(TypeError, NAMED_CLASSES, "non_linearity", None, 1, nn.ReLU(), ["gelu"])
_expect(ValueError, NAMED_CLASSES, "non_linearity", "no_activation", "GELU", "", "threshold")

# LoRADense and its children, and VeRA
_expect(TypeError, LORA_CLASSES, "lora_alpha", "3", None, True, Tensor(3.0), [3], 3j)
_expect(ValueError, LORA_CLASSES, "lora_alpha", 0, 0.0, NAN, INFINITY)
_expect(TypeError, LORA_CLASSES, "lora_dropout", 0, 1, "0.1", None, False, Tensor(0.1))
_expect(ValueError, LORA_CLASSES, "lora_dropout", 1.0, -0.1, 1.5, NAN, INFINITY)
_expect(
    ValueError,
    LORA_CLASSES,
    "lora_a_init",
    _zeros(12),
    _zeros(2, 6, 1),
    _zeros(3, 6),
    _zeros(2, 5),
    "no_initializer",
    NAN,
)
_expect(
    ValueError,
    LORA_CLASSES,
    "lora_b_init",
    _zeros(8),
    _zeros(4, 2, 1),
    _zeros(5, 2),
    _zeros(4, 3),
    "no_initializer",
    NAN,
)
_expect(TypeError, LORA_CLASSES, "lora_a_init", None, [1.0], True)
_expect(TypeError, LORA_CLASSES, "lora_b_init", None, [1.0], True)
_expect(TypeError, VeRADense, "vera_dropout", 0, 1, "0.1", None, False, Tensor(0.1))
_expect(ValueError, VeRADense, "vera_dropout", 1.0, -0.1, 1.5, NAN, INFINITY)
_expect(TypeError, VeRADense, "d_initial", None, [0.1], True)
_expect(ValueError, VeRADense, "d_initial", _zeros(4), "no_initializer", NAN)
_expect(TypeError, VeRADense, "projection", 0, "0", _zeros(3, 6), (_zeros(3, 6), _zeros(4, 3)))
_expect(ValueError, VeRADense, "projection", *(make_projection(*sizes) for sizes in ((5, 4, 3), (6, 3, 3), (6, 4, 4))))
_expect(ValueError, PiSSADense, "lora_rank", 5, 7)

# The low-rank layers
_expect(TypeError, (LowRankAdapterDense, LowRankAdapterLayer), "low_rank_w_init", None, 1.0, _zeros(6, 1), ["normal"])
_expect(ValueError, (LowRankAdapterDense, LowRankAdapterLayer), "low_rank_w_init", "no_initializer", "")
_expect(ValueError, LowRankAdapterDense, "reduction_factor", 5)
_expect(ValueError, LowRankAdapterLayer, "reduction_factor", 7)
_expect(TypeError, LowRankLinear, "weight_init", None, 1.0, _zeros(6, 1))
_expect(ValueError, LowRankLinear, "bias_init", _zeros(5), _zeros(1, 4), "no_initializer")

# The prefix methods
_expect(ValueError, PrefixLayer, "prefix_token_num", 3, 5)
_expect(ValueError, PrefixLayer, "num_heads", 3)
_expect(ValueError, PrefixLayer, "dropout_rate", 1.0, 1, -0.1, NAN, INFINITY)
_expect(TypeError, PrefixLayer, "dropout_rate", "0.1", None, False)
_expect(ValueError, PrefixEncoder, "dropout_prob", 1.0, 1, -0.1, NAN, INFINITY)
_expect(TypeError, PrefixEncoder, "dropout_prob", "0.1", None, False)
_expect(TypeError, PrefixEncoder, "prefix_projection", *NO_BOOLS)
_expect(TypeError, PrefixEncoder, "out_perm", [2, 0, 3, 1, 4], None, 2)
_expect(ValueError, PrefixEncoder, "out_perm", (0, 1, 2, 3, 4), (2, 0, 3, 1), (2, 0, 3, 1, 1))
_expect(TypeError, PrefixEncoder, "parallel_config", SimpleNamespace(data_parallel=1.0, model_parallel=1))
_expect(ValueError, PrefixEncoder, "parallel_config", SimpleNamespace(data_parallel=1, model_parallel=0))


@pytest.mark.parametrize(
    ("error", "cell", "argument", "value"),
    ROWS,
    ids=[
        f"{cell.__name__}-{argument}-{type(value).__name__}-{error.__name__}" for error, cell, argument, value in ROWS
    ],
)
def test_a_wrong_argument_raises_the_documented_error(error, cell, argument, value):
    with pytest.raises(error) as raised:
        cell(**(VALID[cell] | {argument: value}))
    named = argument if argument != "parallel_config" else "_parallel"
    assert named in str(raised.value)
    assert "accepted is" in str(raised.value)


def test_zero_and_negative_sizes_raise_a_class_of_their_own():
    with pytest.raises(NotPositiveError):
        LoRADense(0, 4, 2, 3)


def test_arguments_at_the_edge_are_accepted():
    for cell, arguments in VALID.items():
        cell(**arguments)
    LoRADense(6, 4, 2, -0.5, lora_a_init="zero", lora_b_init=_zeros(4, 2), weight_init=0, bias_init=np.float32(1.5))
    LoRADense(6, 4, 2, 3, param_init_type=mstype.bfloat16, compute_dtype=mstype.bfloat16)
    LoRADense(6, 4, 2, 3, activation=nn.LeakyReLU(0.1), has_bias=False)
    LowRankAdapterLayer(6, 6, low_rank_w_init=Normal(0.1))
    PrefixLayer(4, 2, 2, 8, 5, dropout_rate=0)
    PrefixEncoder(3, 2, 2, 4, False, 5, 0)


def test_a_typo_in_a_name_gets_a_suggestion():
    with pytest.raises(KeyError, match="leakyrelu"):
        LoRADense(6, 4, 2, 3, activation="leaky_relu")
    with pytest.raises(ValueError, match="'gelu'"):
        AdapterLayer(6, non_linearity="GELU")
