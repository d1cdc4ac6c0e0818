"""LoRA on a convolution: its formula over stride, dilation, groups and padding, gradients, and PEFT's numbers."""

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from mindspore import dtype as mstype

from mindpet.delta import LoRAConv2d, _reference
from mindpet.delta._cases import central_differences
from mindpet.utils.exceptions import InputError
from tests.delta.layers import NUMPY, Probed, Side, random_input, randomise, values_of

INPUTS, OUTPUTS, RANK, ALPHA = 4, 6, 2, 3
KERNEL, PIXELS = (3, 2), (5, 6)
# (arguments of nn.Conv2d, rows above and below, columns left and right)
FORMS = {
    "same": ({"pad_mode": "same"}, (1, 1, 0, 1)),
    "same_strided": ({"pad_mode": "same", "stride": 2, "has_bias": True}, (1, 1, 0, 0)),
    "same_dilated": ({"pad_mode": "same", "dilation": 2}, (2, 2, 1, 1)),
    "valid": ({"pad_mode": "valid", "stride": (2, 1), "has_bias": True}, (0, 0, 0, 0)),
    "valid_dilated": ({"pad_mode": "valid", "dilation": (1, 3)}, (0, 0, 0, 0)),
    "pad": ({"pad_mode": "pad", "padding": 1, "has_bias": True}, (1, 1, 1, 1)),
    "pad_uneven": ({"pad_mode": "pad", "padding": (1, 0, 2, 1), "dilation": (2, 1)}, (1, 0, 2, 1)),
    "groups": ({"pad_mode": "valid", "group": 2, "has_bias": True}, (0, 0, 0, 0)),
    "groups_strided": ({"pad_mode": "same", "group": 2, "stride": 2, "dilation": 1}, (1, 1, 0, 0)),
}


def _conv(form, dtype=mstype.float32):
    return randomise(nn.Conv2d(INPUTS, OUTPUTS, KERNEL, **FORMS[form][0], dtype=dtype))


def _formula(form, x, parameters):
    arguments, padding = FORMS[form]
    sliding = {
        name: value if isinstance(value, tuple) else (value, value)
        for name, value in arguments.items()
        if name in ("stride", "dilation")
    }
    return _reference.lora_conv2d(x, parameters, ALPHA / RANK, padding=padding, **sliding)


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_the_result_starts_as_the_convolution_and_follows_the_formula(mode, dtype):
    bases = [_conv(form, dtype) for form in FORMS]
    starting = [LoRAConv2d.from_conv2d(base, RANK, ALPHA) for base in bases]
    moved = [randomise(LoRAConv2d.from_conv2d(_conv(form, dtype), RANK, ALPHA)) for form in FORMS]
    x = random_input((2, INPUTS, *PIXELS), NUMPY[dtype])
    plain, first, then = (Side(cells)(Tensor(x)) for cells in (bases, starting, moved))
    tolerance = 1e-5 if dtype == mstype.float32 else 3e-2
    for form, base, start, output, cell in zip(FORMS, plain, first, then, moved, strict=True):
        assert start.dtype == output.dtype == dtype
        np.testing.assert_array_equal(start.asnumpy(), base.asnumpy(), err_msg=form)
        expected = _formula(form, x.astype(np.float64), values_of(cell))
        np.testing.assert_allclose(output.asnumpy(), expected, rtol=tolerance, atol=tolerance, err_msg=form)


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_gradients_follow_finite_differences(mode, dtype):
    forms = ("pad_uneven", "groups_strided", "same_dilated")
    cells = [
        randomise(LoRAConv2d.from_conv2d(_conv(form, dtype), RANK, ALPHA, param_init_type=dtype)) for form in forms
    ]
    x = random_input((1, INPUTS, *PIXELS), NUMPY[dtype])
    exact, values = x.astype(np.float64), [values_of(cell) for cell in cells]
    probes = [random_input(_formula(*case).shape, seed=2) for case in zip(forms, [exact] * 3, values, strict=True)]
    weights = [parameter for cell in cells for parameter in cell.get_parameters()]
    by_input, by_weight = mindspore.grad(Probed(Side(cells), probes), 0, weights)(Tensor(x))

    def scalar():
        return float(
            sum(
                (_formula(form, exact, of) * probe).sum() for form, of, probe in zip(forms, values, probes, strict=True)
            )
        )

    given = iter(by_weight)
    computed = [("x", exact, by_input), *((name, of[name], next(given)) for of in values for name in of)]
    for name, variable, gradient in computed:
        expected = central_differences(scalar, variable)
        tolerance = 1e-4 if dtype == mstype.float32 else 2e-2 * np.abs(expected).max()
        np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-3, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_the_merged_values_are_the_layer(form):
    base = _conv(form)
    layer = randomise(LoRAConv2d.from_conv2d(base, RANK, ALPHA))
    if "group" in FORMS[form][0]:
        with pytest.raises(InputError, match="2 groups cannot be merged"):
            layer.merged_values()
        return
    x = Tensor(random_input((2, INPUTS, *PIXELS)))
    expected = layer(x).asnumpy()
    merged = layer.merged_values()
    assert list(merged) == ["weight"]
    assert merged["weight"].dtype == np.float32
    base.weight.set_data(Tensor(merged["weight"]))
    np.testing.assert_allclose(base(x).asnumpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_very_parameters_of_the_base_are_used_and_names_stay():
    class Network(nn.Cell):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(INPUTS, OUTPUTS, KERNEL, has_bias=True, group=2)

    network = Network().set_train()
    base = network.first
    layer = LoRAConv2d.from_conv2d(base, RANK, ALPHA)
    for attribute in ("weight", "bias", "conv2d", "bias_add"):
        assert getattr(layer, attribute) is getattr(base, attribute)
    assert layer.training
    assert {name: tuple(parameter.shape) for name, parameter in layer.parameters_dict().items()} == {
        "first.weight": (OUTPUTS, INPUTS // 2, *KERNEL),
        "first.bias": (OUTPUTS,),
        "first.mindpet_delta_lora_a": (RANK, INPUTS, *KERNEL),
        "first.mindpet_delta_lora_b": (OUTPUTS, RANK // 2, 1, 1),
    }
    assert not layer.mindpet_delta_lora_b.asnumpy().any()


def test_the_scaling_switches_the_branch_off_by_value(mode):
    base = _conv("same")
    layer = randomise(LoRAConv2d.from_conv2d(base, RANK, ALPHA))
    layer.scaling = Parameter(Tensor(1.5, mstype.float32), name="scaling", requires_grad=False)
    x = Tensor(random_input((2, INPUTS, *PIXELS)))
    assert not np.allclose(layer(x).asnumpy(), base(x).asnumpy(), atol=1e-2)
    layer.scaling.set_data(Tensor(0.0, mstype.float32))
    assert np.array_equal(layer(x).asnumpy(), base(x).asnumpy())


def test_dropout_thins_the_branch_in_training_only(mode):
    layer = randomise(LoRAConv2d.from_conv2d(_conv("valid"), RANK, ALPHA, 0.5))
    x = Tensor(random_input((2, INPUTS, *PIXELS)))
    kept = layer(x).asnumpy()
    layer = randomise(LoRAConv2d.from_conv2d(_conv("valid"), RANK, ALPHA, 0.5)).set_train()
    assert not np.allclose(layer(x).asnumpy(), kept, atol=1e-2)


def test_what_computes_otherwise_is_refused():
    class Scaled(nn.Conv2d):
        def construct(self, x):
            return 2 * super().construct(x)

    for stranger in (None, nn.Dense(2, 2), Scaled(2, 2, 1), nn.Conv1d(2, 2, 1), LoRAConv2d(2, 2, 1, RANK, ALPHA)):
        with pytest.raises(TypeError, match=f"{type(stranger).__name__}; accepted is an nn.Conv2d"):
            LoRAConv2d.from_conv2d(stranger, RANK, ALPHA)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"lora_rank": 2.0}, TypeError, "lora_rank"),
        ({"lora_rank": 3}, ValueError, r"lora_rank.*a multiple of `group`"),
        ({"lora_alpha": 0}, ValueError, "lora_alpha"),
        ({"lora_dropout": 0}, TypeError, "lora_dropout"),
        ({"lora_b_init": "no_initializer"}, ValueError, "lora_b_init"),
        ({"compute_dtype": mstype.int8}, TypeError, "compute_dtype"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, named):
    with pytest.raises(error, match=named):
        LoRAConv2d.from_conv2d(_conv("groups"), **({"lora_rank": RANK, "lora_alpha": ALPHA} | arguments))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": (1, 2)}], ids=str)
def test_it_equals_peft(mode, arguments):
    """Without dilation, which PEFT leaves out of its branch."""
    import torch
    from peft import LoraConfig, get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Conv2d(INPUTS, OUTPUTS, KERNEL, **arguments)

        def forward(self, x):
            return self.first(x)

    peer = get_peft_model(Holder(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["first"]))
    first = peer.base_model.model.first
    rows, columns = first.base_layer.padding
    own = {"stride": arguments.get("stride", 1), "group": arguments.get("groups", 1), "pad_mode": "pad"}
    own["padding"] = (rows, rows, columns, columns)
    layer = randomise(LoRAConv2d(INPUTS, OUTPUTS, KERNEL, RANK, ALPHA, has_bias=True, **own))
    pairs = {
        "weight": first.base_layer.weight,
        "bias": first.base_layer.bias,
        "mindpet_delta_lora_a": first.lora_A.default.weight,
        "mindpet_delta_lora_b": first.lora_B.default.weight,
    }
    for name, value in values_of(layer).items():
        assert tuple(pairs[name].shape) == value.shape
        pairs[name].data = torch.tensor(value, dtype=torch.float32)
        pairs[name].requires_grad = True
    x = random_input((2, INPUTS, *PIXELS))
    given = torch.tensor(x, requires_grad=True)
    output = peer(given)
    probe = random_input(tuple(output.shape), seed=2)
    (output * torch.tensor(probe)).sum().backward()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), output.detach().numpy(), rtol=1e-4, atol=1e-4)
    weights = list(layer.get_parameters())
    by_input, by_weight = mindspore.grad(Probed(Side([layer]), [probe]), 0, weights)(Tensor(x))
    np.testing.assert_allclose(by_input.asnumpy(), given.grad.numpy(), rtol=1e-4, atol=1e-4)
    for weight, gradient in zip(weights, by_weight, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), pairs[weight.name.split(".")[-1]].grad, rtol=1e-4, atol=1e-3)
    if "groups" not in arguments:
        merged = layer.merged_values()["weight"]
        peer.merge_adapter()
        np.testing.assert_allclose(merged, first.base_layer.weight.detach().numpy(), rtol=1e-5, atol=1e-6)
