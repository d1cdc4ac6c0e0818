"""The same numbers as the peers: PEFT's LoRA, the adapters library's bottleneck, torch's losses and activations."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from mindpet.delta import AdapterLayer, LoRADense, PrefixEncoder, RDropLoss
from tests.delta.layers import Probed, Side, random_input, randomise, values_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (4, 16), (8, 2.5)])
def test_lora_equals_peft(mode, has_bias, rank, alpha):
    import torch
    from peft import LoraConfig, get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query = torch.nn.Linear(12, 10, bias=has_bias)

        def forward(self, x):
            return self.query(x)

    peer = get_peft_model(Holder(), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["query"], lora_dropout=0.0))
    layer = randomise(LoRADense(12, 10, rank, alpha, has_bias=has_bias, compute_dtype=mstype.float32))
    query = peer.base_model.model.query
    pairs = {
        "weight": query.base_layer.weight,
        "bias": query.base_layer.bias,
        "mindpet_delta_lora_a": query.lora_A.default.weight,
        "mindpet_delta_lora_b": query.lora_B.default.weight,
    }
    for name, value in values_of(layer).items():
        pairs[name].data = torch.tensor(value, dtype=torch.float32)
        pairs[name].requires_grad = True

    x, probe = random_input((2, 3, 12)), random_input((2, 3, 10), seed=2)
    given = torch.tensor(x, requires_grad=True)
    output = peer(given)
    (output * torch.tensor(probe)).sum().backward()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), output.detach().numpy(), rtol=1e-5, atol=1e-5)

    weights = list(layer.get_parameters())
    by_input, by_weight = mindspore.grad(Probed(Side([layer]), [probe]), 0, weights)(Tensor(x))
    np.testing.assert_allclose(by_input.asnumpy(), given.grad.numpy(), rtol=1e-4, atol=1e-4)
    for weight, gradient in zip(weights, by_weight, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), pairs[weight.name.split(".")[-1]].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("non_linearity", ["relu", "sigmoid", "fast_gelu"])
def test_the_adapter_equals_the_adapters_library(mode, non_linearity):
    import torch
    from adapters import BnConfig
    from adapters.methods.modeling import Adapter

    config = BnConfig(
        mh_adapter=False,
        output_adapter=True,
        reduction_factor=3,
        non_linearity={"fast_gelu": "quick_gelu"}.get(non_linearity, non_linearity),  # x * sigmoid(1.702 x)
        original_ln_before=False,
        original_ln_after=False,
    )
    peer = Adapter("peer", input_size=12, down_sample=4, config=config)
    layer = randomise(AdapterLayer(12, 4, non_linearity, compute_dtype=mstype.float32))
    pairs = {
        "down_sampler.weight": peer.adapter_down[0].weight,
        "down_sampler.bias": peer.adapter_down[0].bias,
        "up_sampler.weight": peer.adapter_up.weight,
        "up_sampler.bias": peer.adapter_up.bias,
    }
    for parameter in layer.get_parameters():
        peers_own = next(value for name, value in pairs.items() if parameter.name.endswith(name))
        peers_own.data = torch.tensor(parameter.asnumpy())

    x, probe = random_input((2, 3, 12)), random_input((2, 3, 12), seed=2)
    given = torch.tensor(x, requires_grad=True)
    output = peer(given, residual_input=given)[0]
    (output * torch.tensor(probe)).sum().backward()
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), output.detach().numpy(), rtol=1e-5, atol=1e-5)

    weights = list(layer.get_parameters())
    by_input, by_weight = mindspore.grad(Probed(Side([layer]), [probe]), 0, weights)(Tensor(x))
    np.testing.assert_allclose(by_input.asnumpy(), given.grad.numpy(), rtol=1e-4, atol=1e-4)
    for weight, gradient in zip(weights, by_weight, strict=True):
        expected = next(value.grad for name, value in pairs.items() if weight.name.endswith(name))
        np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("alpha", [4, 0.5])
def test_r_drop_equals_torch(mode, probabilities, alpha):
    import torch
    from torch.nn.functional import cross_entropy, kl_div, log_softmax

    logits = 3 * random_input((10, 7))
    labels = np.repeat(np.random.default_rng(0).integers(0, 7, 5), 2).astype(np.int32)
    if probabilities:
        labels = np.repeat(np.random.default_rng(0).dirichlet(np.ones(7), 5), 2, 0).astype(np.float32)
    given = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    target = torch.tensor(labels, dtype=torch.float64 if probabilities else torch.int64)
    log_p, log_q = log_softmax(given[::2], -1), log_softmax(given[1::2], -1)
    forward = kl_div(log_q, log_p, reduction="batchmean", log_target=True)  # KL(p || q)
    backward = kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    expected = cross_entropy(given, target) + alpha * (forward + backward) / 4
    expected.backward()

    loss = RDropLoss()
    assert abs(float(loss(Tensor(logits), Tensor(labels), alpha).asnumpy()) - expected.item()) < 1e-5
    gradient = mindspore.grad(loss)(Tensor(logits), Tensor(labels), alpha)
    np.testing.assert_allclose(gradient.asnumpy(), given.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_the_encoder_arranges_its_table_as_peft_does():
    import torch
    from peft import PrefixTuningConfig
    from peft.tuners.prefix_tuning import PrefixEncoder as Peer

    tokens, layers, heads, channels, batch = 4, 3, 2, 5, 2
    config = PrefixTuningConfig(
        num_virtual_tokens=tokens,
        num_layers=layers,
        token_dim=heads * channels,
        num_attention_heads=heads,
        encoder_hidden_size=6,
    )
    peer = Peer(config)
    encoder = randomise(PrefixEncoder(tokens, layers, heads, channels, False, 6, 0.0))
    table = encoder.mindpet_delta_ptuning2_embedding.embedding_table.asnumpy()
    assert tuple(peer.embedding.weight.shape) == table.shape
    peer.embedding.weight.data = torch.tensor(table)
    states = peer(torch.arange(tokens).expand(batch, -1))
    expected = states.view(batch, tokens, layers * 2, heads, channels).permute(2, 0, 3, 1, 4).split(2)
    for prefix, values in zip(encoder(batch, mstype.float32), expected, strict=True):
        assert np.array_equal(prefix.asnumpy(), values.detach().numpy())


def test_activations_equal_torch():
    import torch
    from torch.nn import functional

    from mindpet.delta._reference import ACTIVATIONS

    peers = {
        "elu": functional.elu,
        "gelu": lambda x: functional.gelu(x, approximate="tanh"),
        "hardtanh": functional.hardtanh,
        "hshrink": functional.hardshrink,
        "hsigmoid": functional.hardsigmoid,
        "hswish": functional.hardswish,
        "leakyrelu": lambda x: functional.leaky_relu(x, 0.2),
        "logsigmoid": functional.logsigmoid,
        "logsoftmax": lambda x: functional.log_softmax(x, -1),
        "mish": functional.mish,
        "prelu": lambda x: functional.leaky_relu(x, 0.25),
        "relu": functional.relu,
        "relu6": functional.relu6,
        "sigmoid": torch.sigmoid,
        "silu": functional.silu,
        "softmax": lambda x: functional.softmax(x, -1),
        "softmin": lambda x: functional.softmin(x, -1),
        "softshrink": functional.softshrink,
        "softsign": functional.softsign,
        "tanh": torch.tanh,
        "tanhshrink": functional.tanhshrink,
    }
    x = 4 * np.random.default_rng(0).normal(size=(20, 9))
    for name, peer in peers.items():
        np.testing.assert_allclose(
            ACTIVATIONS[name](x), peer(torch.tensor(x)).numpy(), rtol=1e-9, atol=1e-12, err_msg=name
        )
