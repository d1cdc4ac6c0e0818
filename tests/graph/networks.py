"""Small networks and the arguments of a training loop, for the tests of this room."""

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train import RunContext


class Layer(nn.Cell):
    """A dense layer with one parameter of every method, by the names that the methods give them."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(2, 2)
        for part in (
            "mindpet_delta_lora_a",
            "mindpet_delta_lora_b",
            "mindpet_delta_adapter_down_sampler",
            "mindpet_delta_low_rank_adapter_down_sampler_l",
            "mindpet_delta_prefixtuning_embedding",
            "mindpet_delta_ptuning2_embedding",
        ):
            self.insert_param_to_cell(part, ms.Parameter(ms.Tensor(np.ones(3), ms.float32), name=part))


class Network(nn.Cell):
    """Two layers with all methods, and a head."""

    def __init__(self):
        super().__init__()
        self.layers = nn.CellList([Layer(), Layer()])
        self.head = nn.Dense(2, 2)


class LoraNetwork(nn.Cell):
    """A network that computes something: a frozen dense layer with two small matrices beside it, and a head."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(4, 4)
        self.mindpet_delta_lora_a = ms.Parameter(ms.Tensor(np.full((2, 4), 0.1), ms.float32))
        self.mindpet_delta_lora_b = ms.Parameter(ms.Tensor(np.full((4, 2), 0.1), ms.float32))
        self.head = nn.Dense(4, 2)
        for parameter in self.dense.get_parameters():
            parameter.requires_grad = False

    def construct(self, x):
        update = ms.ops.matmul(ms.ops.matmul(x, self.mindpet_delta_lora_a.T), self.mindpet_delta_lora_b.T)
        return self.head(self.dense(x) + update)


LORA_NAMES = {"mindpet_delta_lora_a", "mindpet_delta_lora_b", "head.weight", "head.bias"}


class LoopArguments(dict):
    """What a training loop tells its callbacks."""

    __getattr__ = dict.__getitem__


def run_context(network, step, epoch=1, batch_num=10):
    return RunContext(LoopArguments(train_network=network, cur_step_num=step, cur_epoch_num=epoch, batch_num=batch_num))


def set_trainable(network, value):
    """Give every number of the trainable parameters the same value."""
    for parameter in network.trainable_params():
        parameter.set_data(ms.Tensor(np.full(parameter.shape, value), parameter.dtype))


def trainable_values(network):
    return {parameter.name: parameter.asnumpy().copy() for parameter in network.trainable_params()}
