"""Import paths, signatures, defaults and parameter names, as the specification and existing clients have them."""

import importlib
import inspect
import math
import subprocess
import sys

import pytest
from mindspore import dtype as mstype
from mindspore import nn
from mindspore.common.initializer import HeUniform

from mindpet.delta import (
    AdapterDense,
    AdapterLayer,
    DoRADense,
    LoRADense,
    LowRankAdapterDense,
    LowRankAdapterLayer,
    LowRankLinear,
    PrefixEncoder,
    PrefixLayer,
    RDropLoss,
)
from mindpet.utils.version_control import get_dropout

PATHS = {
    "mindpet.delta": [
        "AdapterDense",
        "AdapterLayer",
        "DoRADense",
        "LoRADense",
        "LowRankAdapterDense",
        "LowRankAdapterLayer",
        "PiSSADense",
        "PrefixEncoder",
        "PrefixLayer",
        "RDropLoss",
        "TrainableTokensEmbedding",
        "VeRADense",
        "make_projection",
        "rdrop_repeat",
    ],
    "mindpet.delta.adapter": ["AdapterDense", "AdapterLayer", "LowRankAdapterDense", "LowRankAdapterLayer"],
    "mindpet.delta.delta_constants": ["VALID_TENSOR_DATATYPE"],
    "mindpet.delta.lora": ["LoRADense"],
    "mindpet.delta.low_rank_adapter": ["LowRankAdapterDense", "LowRankAdapterLayer", "LowRankLinear"],
    "mindpet.delta.prefix_layer": ["PrefixLayer"],
    "mindpet.delta.ptuning2": ["PrefixEncoder"],
    "mindpet.delta.r_drop": ["RDropLoss", "rdrop_repeat"],
    "mindpet.utils.version_control": ["get_dropout"],
}

_BASE = {"weight_init": "normal", "bias_init": "zeros", "has_bias": True, "activation": None}
_DTYPES = {"param_init_type": mstype.float32, "compute_dtype": mstype.float16}
_REQUIRED = inspect.Parameter.empty
_CHANNELS = {"in_channels": _REQUIRED, "out_channels": _REQUIRED}
_LOW_RANK = {
    "reduction_factor": 1,
    "low_rank_size": 1,
    "low_rank_w_init": "xavier_uniform",
    "non_linearity": "gelu",
    **_DTYPES,
}

SIGNATURES = {
    LoRADense: {
        **_CHANNELS,
        "lora_rank": _REQUIRED,
        "lora_alpha": _REQUIRED,
        "lora_dropout": 0.0,
        "lora_a_init": HeUniform,
        "lora_b_init": "zeros",
        **_DTYPES,
        **_BASE,
    },
    AdapterDense: {**_CHANNELS, **_BASE, "bottleneck_size": 64, "non_linearity": "gelu", **_DTYPES},
    AdapterLayer: {"hidden_size": _REQUIRED, "bottleneck_size": 64, "non_linearity": "gelu", **_DTYPES},
    LowRankAdapterDense: {**_CHANNELS, **_BASE, **_LOW_RANK},
    LowRankAdapterLayer: {"hidden_size": _REQUIRED, **_LOW_RANK},
    LowRankLinear: {
        **_CHANNELS,
        "rank": 1,
        "weight_init": "normal",
        "bias_init": "zeros",
        "has_bias": True,
        **_DTYPES,
    },
    PrefixLayer: {
        **dict.fromkeys(["prefix_token_num", "batch_size", "num_heads", "hidden_dim", "embed_dim"], _REQUIRED),
        "mid_dim": 512,
        "dropout_rate": 0.1,
    },
    PrefixEncoder: {
        **dict.fromkeys(["pre_seq_len", "num_layers", "num_heads", "kv_channels", "prefix_projection"], _REQUIRED),
        "projection_dim": _REQUIRED,
        "dropout_prob": _REQUIRED,
        "parallel_config": None,
        "out_perm": (2, 0, 3, 1, 4),
    },
}


@pytest.mark.parametrize("path", PATHS)
def test_each_name_is_importable_from_each_path_and_is_one_object(path):
    delta = importlib.import_module("mindpet.delta")
    module = importlib.import_module(path)
    for name in PATHS[path]:
        found = getattr(module, name)
        assert found is getattr(delta, name, found)


@pytest.mark.parametrize("cell", SIGNATURES)
def test_the_signature_is_the_documented_one(cell):
    parameters = dict(inspect.signature(cell.__init__).parameters)
    parameters.pop("self")
    assert list(parameters) == list(SIGNATURES[cell])
    for name, default in SIGNATURES[cell].items():
        given = parameters[name].default
        if default is HeUniform:
            assert isinstance(given, HeUniform)
            assert given.negative_slope == math.sqrt(5)
        else:
            assert given is default or given == default, name


def test_the_loss_takes_logits_labels_and_alpha():
    parameters = inspect.signature(RDropLoss.construct).parameters
    assert list(parameters) == ["self", "logits", "label_ids", "alpha"]
    assert parameters["alpha"].default == 4


@pytest.mark.parametrize("cell", [LoRADense, AdapterDense, LowRankAdapterDense])
def test_the_dense_layers_are_dense_layers(cell):
    assert issubclass(cell, nn.Dense)


_BLOCK = "mindpet_delta_adapter_block.mindpet_delta_adapter"
_ADAPTER = {
    f"{_BLOCK}_down_sampler.weight": (3, 4),
    f"{_BLOCK}_down_sampler.bias": (3,),
    f"{_BLOCK}_up_sampler.weight": (4, 3),
    f"{_BLOCK}_up_sampler.bias": (4,),
}
_LOW = "mindpet_delta_low_rank_adapter"
_LOW_RANK_LAYER = {
    f"{_LOW}_down_sampler.{_LOW}_weight_left": (4, 1),
    f"{_LOW}_down_sampler.{_LOW}_weight_right": (1, 2),
    f"{_LOW}_down_sampler.bias": (2,),
    f"{_LOW}_up_sampler.{_LOW}_weight_left": (2, 1),
    f"{_LOW}_up_sampler.{_LOW}_weight_right": (1, 4),
    f"{_LOW}_up_sampler.bias": (4,),
}
_OWN = {"weight": (4, 6), "bias": (4,)}


def _inside(path, shapes):
    return {f"{path}.{name}": shape for name, shape in shapes.items()}


_ENCODER = "mindpet_delta_ptuning2"
NAMES = [
    (LoRADense(6, 4, 2, 3), {**_OWN, "mindpet_delta_lora_a": (2, 6), "mindpet_delta_lora_b": (4, 2)}),
    (
        LoRADense(6, 4, 2, 3, has_bias=False),
        {"weight": (4, 6), "mindpet_delta_lora_a": (2, 6), "mindpet_delta_lora_b": (4, 2)},
    ),
    (
        DoRADense(6, 4, 2, 3),
        {
            **_OWN,
            "mindpet_delta_lora_a": (2, 6),
            "mindpet_delta_lora_b": (4, 2),
            "mindpet_delta_lora_magnitude": (4,),
        },
    ),
    (AdapterLayer(4, 3), _ADAPTER),
    (AdapterDense(6, 4, bottleneck_size=3), _OWN | _inside("mindpet_delta_adapter", _ADAPTER)),
    (LowRankAdapterLayer(4, 2), _LOW_RANK_LAYER),
    (LowRankAdapterDense(6, 4, reduction_factor=2), _OWN | _inside(_LOW, _LOW_RANK_LAYER)),
    (
        PrefixLayer(4, 2, 2, 8, 5, 6),
        {
            "mindpet_delta_prefixtuning_wte.embedding_table": (4, 5),
            "mindpet_delta_prefixtuning_control_trans.0.weight": (6, 5),
            "mindpet_delta_prefixtuning_control_trans.0.bias": (6,),
            "mindpet_delta_prefixtuning_control_trans.2.weight": (16, 6),
            "mindpet_delta_prefixtuning_control_trans.2.bias": (16,),
        },
    ),
    (
        PrefixEncoder(3, 2, 2, 4, True, 5, 0.1),
        {
            f"{_ENCODER}_embedding.embedding_table": (3, 32),
            f"{_ENCODER}_dense_in.weight": (5, 32),
            f"{_ENCODER}_dense_in.bias": (5,),
            f"{_ENCODER}_dense_out.weight": (32, 5),
            f"{_ENCODER}_dense_out.bias": (32,),
        },
    ),
    (PrefixEncoder(3, 2, 2, 4, False, 5, 0.1), {f"{_ENCODER}_embedding.embedding_table": (3, 32)}),
]


@pytest.mark.parametrize(("cell", "shapes"), NAMES, ids=[type(cell).__name__ for cell, _ in NAMES])
def test_the_parameters_are_exactly_the_documented_ones(cell, shapes):
    assert {name: parameter.shape for name, parameter in cell.parameters_and_names()} == shapes
    assert {parameter.name for parameter in cell.get_parameters()} == set(shapes)
    assert all(parameter.requires_grad for parameter in cell.get_parameters())


def test_the_starting_values_are_the_documented_ones():
    lora = LoRADense(64, 64, 8, 3)
    bound = math.sqrt(6 / ((1 + 5) * 64))  # He uniform over the 64 inputs of lora_a
    a = lora.mindpet_delta_lora_a.asnumpy()
    assert 0.9 * bound < abs(a).max() <= bound
    assert not lora.mindpet_delta_lora_b.asnumpy().any()
    assert 0.005 < lora.weight.asnumpy().std() < 0.02
    block = AdapterLayer(64).mindpet_delta_adapter_block
    for name in ("down", "up"):
        sampler = getattr(block, f"mindpet_delta_adapter_{name}_sampler")
        assert 0.005 < sampler.weight.asnumpy().std() < 0.02
        assert not sampler.bias.asnumpy().any()
    # Two layers never start alike.
    assert (a != LoRADense(64, 64, 8, 3).mindpet_delta_lora_a.asnumpy()).any()


def test_get_dropout_returns_a_dropout_of_that_rate():
    dropout = get_dropout(0.25)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.25


def test_the_room_needs_nothing_but_mindspore_and_numpy():
    """No MindFormers, torch or other peer is imported, and nothing of ours above the room."""
    code = (
        "import sys, mindpet.delta; "
        "above = {'tuning', 'models', 'train', 'cli', 'graph', 'kernels', 'data', 'storage'}; "
        "loaded = {name.split('.')[1] for name in sys.modules if name.startswith('mindpet.')}; "
        "assert not loaded & above, loaded & above; "
        "assert not {'mindformers', 'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
