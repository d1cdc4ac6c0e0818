"""A layer of ours beside the same layer as PEFT adapts it: the same values, outputs, gradients and steps."""

import mindspore
import numpy as np
from mindspore import Parameter, Tensor
from mindspore import dtype as mstype
from mindspore.experimental import optim

from tests.delta.layers import Probed, Side, random_input

STEPS, RATE, DECAY = 6, 0.02, 0.1


def adapt(module, config):
    """Return PEFT's layer in the place of the torch `module`."""
    import torch
    from peft import get_peft_model

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = module

        def forward(self, x):
            return self.layer(x)

    return get_peft_model(Holder(), config).base_model.model.layer


def share_values(layer, pairs):
    """Give the torch parameters in `pairs` the values of ours, by our names, and let all that are trained train."""
    import torch

    for name, parameter in layer.parameters_and_names():
        pairs[name].data = torch.tensor(parameter.asnumpy())
        pairs[name].requires_grad = parameter.requires_grad


def compare(layer, peer, pairs, x):
    """Compare the outputs and, of a random sum of them, the gradients of the trained parameters."""
    import torch

    output = peer(torch.tensor(x))
    ours = layer(Tensor(x)).asnumpy()
    np.testing.assert_allclose(ours, output.detach().numpy(), rtol=1e-5, atol=1e-5)
    probe = random_input(ours.shape, seed=2)
    (output * torch.tensor(probe)).sum().backward()
    weights = {name: parameter for name, parameter in layer.parameters_and_names() if parameter.requires_grad}
    gradients = mindspore.grad(Probed(Side([layer]), [probe]), None, list(weights.values()))(Tensor(x))
    for name, gradient in zip(weights, gradients, strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), pairs[name].grad, rtol=1e-5, atol=1e-5, err_msg=name)


def train_both(layer, peer, x):
    """Take the same few steps of AdamW, with decay, with both layers."""
    import torch

    target = random_input(layer(Tensor(x)).shape, seed=3)
    ours = optim.AdamW(layer.trainable_params(), lr=RATE, weight_decay=DECAY)
    step = mindspore.value_and_grad(lambda: (layer(Tensor(x)) - Tensor(target)).square().mean(), None, ours.parameters)
    theirs = torch.optim.AdamW([p for p in peer.parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY)
    losses = []
    for _ in range(STEPS):
        loss, gradients = step()
        ours(gradients)
        theirs.zero_grad()
        expected = (peer(torch.tensor(x)) - torch.tensor(target)).square().mean()
        expected.backward()
        theirs.step()
        losses.append((float(loss.asnumpy()), expected.item()))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    assert losses[-1][0] < losses[0][0]


def same_mask(dropout, shape):
    """Let our dropout cell use one mask from now on, and return it."""
    dropout.use_mask(Parameter(Tensor(3, mstype.int32), name="step", requires_grad=False), 1, 2)
    return dropout.mask(shape).asnumpy()


def same_dropout(dropout, shape):
    """Let our dropout cell use one mask, and return a torch module that multiplies by it."""
    import torch

    mask = torch.tensor(same_mask(dropout, shape))

    class Mask(torch.nn.Module):
        def forward(self, x):
            return x * mask.reshape(x.shape)

    return Mask()
