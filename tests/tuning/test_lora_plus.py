"""LoRA+: PEFT's groups, and what MindSpore's optimizers make of them."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from mindspore.experimental import optim

import mindpet
from mindpet.delta._cases import randomise
from mindpet.tuning.lora_plus import lora_plus_groups
from mindpet.utils.exceptions import InputError

WORDS, SIZE, CLASSES = 7, 6, 3
IDS = np.random.default_rng(0).integers(0, WORDS, (4, 5)).astype(np.int32)
RATE, RATIO, DECAY, EMBEDDING_RATE = 0.01, 8.0, 0.1, 0.002


class Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, SIZE)
        self.norm = nn.LayerNorm((SIZE,), epsilon=1e-5)
        self.query = nn.Dense(SIZE, SIZE)
        self.head = nn.Dense(SIZE, CLASSES)

    def construct(self, ids):
        return self.head(self.norm(self.query(self.words(ids))).mean(1))


def _network(**fields):
    network = Network()
    config = mindpet.LoraConfig(
        r=2, lora_alpha=4, target_modules=["words", "query"], modules_to_save=["head", "norm"], **fields
    )
    return mindpet.get_peft_model(network, config)


def _groups(network):
    return lora_plus_groups(network, RATE, RATIO, DECAY, EMBEDDING_RATE)


def test_each_parameter_is_in_the_group_of_its_kind():
    found = [([p.name for p in group["params"]], group["lr"], group["weight_decay"]) for group in _groups(_network())]
    assert found == [
        (["query.mindpet_delta_lora_a", "head.weight"], RATE, DECAY),
        (["words.mindpet_delta_lora_a", "words.mindpet_delta_lora_b"], EMBEDDING_RATE, DECAY),
        (["query.mindpet_delta_lora_b"], RATE * RATIO, DECAY),
        (["norm.gamma", "norm.beta", "head.bias"], RATE * RATIO, 0.0),
    ]


def test_a_schedule_is_multiplied_step_by_step():
    groups = lora_plus_groups(_network(), [0.1, 0.2], 4)
    assert [group["lr"] for group in groups] == [[0.1, 0.2], 1e-6, [0.4, 0.8], [0.4, 0.8]]


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf")])
def test_a_ratio_that_is_not_positive_is_refused(ratio):
    with pytest.raises(InputError, match="ratio is"):
        lora_plus_groups(_network(), RATE, ratio)


def test_a_network_that_cannot_train_is_refused():
    network = Network()
    for parameter in network.get_parameters():
        parameter.requires_grad = False
    with pytest.raises(InputError, match="no parameter that can train"):
        lora_plus_groups(network, RATE, RATIO)


def test_a_step_of_mindspores_optimizer_is_as_long_as_its_group_says(mode):
    """The first step of Adam without bias correction is rate * (0.1 g / sqrt(0.001 g^2) + decay * w)."""
    network = randomise(_network())
    before = {p.name: p.asnumpy().copy() for p in network.trainable_params()}
    groups = _groups(network)
    step = nn.TrainOneStepCell(_Loss(network), nn.AdamWeightDecay(groups, learning_rate=RATE, eps=1e-12)).set_train()
    step(Tensor(IDS))
    for group in groups:
        for parameter in group["params"]:
            old = before[parameter.name]
            moved = (old - parameter.asnumpy()) / group["lr"] - group["weight_decay"] * old
            seen = abs(moved) > 1e-2  # a word that does not occur has no gradient
            assert seen.any(), parameter.name
            np.testing.assert_allclose(abs(moved[seen]), 0.1 / np.sqrt(0.001), rtol=2e-2, err_msg=parameter.name)


class _Loss(nn.Cell):
    def __init__(self, network):
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, ids):
        return (self.network(ids) - 1).square().mean()


def _torch_twin(network):
    """Return the same network as PEFT adapts it, with the same values, and its parameters by our names."""
    import torch
    from peft import LoraConfig, get_peft_model

    class Twin(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(WORDS, SIZE)
            self.norm = torch.nn.LayerNorm(SIZE)
            self.query = torch.nn.Linear(SIZE, SIZE)
            self.head = torch.nn.Linear(SIZE, CLASSES)

        def forward(self, ids):
            return self.head(self.norm(self.query(self.words(ids))).mean(1))

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["words", "query"], modules_to_save=["head", "norm"])
    peer = get_peft_model(Twin(), config)
    inner = peer.base_model.model
    head, norm = inner.head.modules_to_save.default, inner.norm.modules_to_save.default
    pairs = {
        "words.embedding_table": inner.words.base_layer.weight,
        "words.mindpet_delta_lora_a": inner.words.lora_embedding_A.default,
        "words.mindpet_delta_lora_b": inner.words.lora_embedding_B.default,
        "query.weight": inner.query.base_layer.weight,
        "query.bias": inner.query.base_layer.bias,
        "query.mindpet_delta_lora_a": inner.query.lora_A.default.weight,
        "query.mindpet_delta_lora_b": inner.query.lora_B.default.weight,
        "norm.gamma": norm.weight,
        "norm.beta": norm.bias,
        "head.weight": head.weight,
        "head.bias": head.bias,
    }
    for parameter in network.get_parameters():
        if parameter.name in pairs:
            pairs[parameter.name].data = torch.tensor(parameter.asnumpy())
    return peer, pairs


@pytest.mark.slow
def test_it_trains_as_peft_does():
    import torch
    from peft.optimizers import create_loraplus_optimizer

    network = _network().set_train()
    peer, pairs = _torch_twin(network)
    theirs = create_loraplus_optimizer(
        peer,
        torch.optim.AdamW,
        lr=RATE,
        loraplus_lr_ratio=RATIO,
        loraplus_weight_decay=DECAY,
        loraplus_lr_embedding=EMBEDDING_RATE,
    )
    groups = _groups(network)
    names = {id(value): name for name, value in pairs.items()}
    expected = [
        (sorted(names[id(p)] for p in group["params"]), group["lr"], group["weight_decay"])
        for group in theirs.param_groups
    ]
    found = [(sorted(p.name for p in group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    assert found == expected

    ours = optim.AdamW(groups, lr=RATE)
    loss = _Loss(network)
    step = mindspore.value_and_grad(lambda: loss(Tensor(IDS)), None, ours.parameters)
    for _ in range(8):
        ours(step()[1])
        theirs.zero_grad()
        (peer(torch.tensor(IDS)) - 1).square().mean().backward()
        theirs.step()
    for parameter in network.trainable_params():
        np.testing.assert_allclose(
            parameter.asnumpy(), pairs[parameter.name].detach(), rtol=1e-5, atol=1e-5, err_msg=parameter.name
        )
