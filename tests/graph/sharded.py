"""Networks that are sharded over 8 devices, or 4 in each of two pipeline stages."""

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer
from mindspore.parallel import Layout

from mindpet.delta import LoRADense
from mindpet.graph import freeze_delta

NARROW, WIDE, CLASSES = 32, 64, 8


def _shard_columns(layer, dp, mp, has_lora):
    if not has_lora:
        layer.matmul.shard(((dp, 1), (mp, 1)))
        layer.bias_add.shard(((dp, mp), (mp,)))
        return layer
    return layer.shard(
        strategy_org_dense_matmul=((dp, 1), (mp, 1)),
        strategy_org_bias_add=((dp, mp), (mp,)),
        strategy_lora_a_matmul=((dp, 1), (1, 1)),
        strategy_lora_b_matmul=((dp, 1), (mp, 1)),
        strategy_lora_mul=((dp, mp), ()),
        strategy_lora_add=((dp, mp), (dp, mp)),
    )


def _shard_rows(layer, dp, mp, has_lora):
    if not has_lora:
        layer.matmul.shard(((dp, mp), (1, mp)))
        layer.bias_add.shard(((dp, 1), (1,)))
        return layer
    return layer.shard(
        strategy_org_dense_matmul=((dp, mp), (1, mp)),
        strategy_org_bias_add=((dp, 1), (1,)),
        strategy_lora_a_matmul=((dp, mp), (1, mp)),
        strategy_lora_b_matmul=((dp, 1), (1, 1)),
        strategy_lora_mul=((dp, 1), ()),
        strategy_lora_add=((dp, 1), (dp, 1)),
    )


class TwoLayers(nn.Cell):
    """A column-parallel layer, a row-parallel one, both with LoRA or without, and a data-parallel head."""

    def __init__(self, has_lora, dp, mp):
        super().__init__()
        layer = (lambda *sizes: LoRADense(*sizes, lora_rank=8, lora_alpha=8)) if has_lora else nn.Dense
        self.up = _shard_columns(layer(NARROW, WIDE), dp, mp, has_lora)
        self.down = _shard_rows(layer(WIDE, NARROW), dp, mp, has_lora)
        self.head = nn.Dense(NARROW, CLASSES)
        self.head.matmul.shard(((dp * mp, 1), (1, 1)))
        self.up.pipeline_stage = 0
        self.down.pipeline_stage = self.head.pipeline_stage = 1

    def construct(self, x):
        return self.head(self.down(self.up(x)))


class CutAcross(nn.Cell):
    """Products that leave devices over on both sides of those which share a weight."""

    def __init__(self):
        super().__init__()
        self.first = Parameter(initializer("normal", (WIDE, NARROW)))
        self.second = Parameter(initializer("normal", (NARROW, WIDE)))
        self.third = Parameter(initializer("normal", (WIDE, NARROW)))
        self.first_matmul = ops.MatMul(transpose_b=True).shard(((2, 2), (1, 2)))
        self.second_matmul = ops.MatMul(transpose_b=True).shard(((2, 2), (2, 2)))
        self.third_matmul = ops.MatMul(transpose_b=True).shard(((1, 1), (2, 1)))

    def construct(self, x):
        return self.third_matmul(self.second_matmul(self.first_matmul(x, self.first), self.second), self.third)


class CutTwice(nn.Cell):
    """A weight and a bias with one axis that is cut over two axes of the devices."""

    def __init__(self):
        super().__init__()
        devices = Layout((2, 2, 2), ("dp", "sp", "mp"))
        self.weight = Parameter(initializer("normal", (WIDE, NARROW)))
        self.bias = Parameter(initializer("normal", (WIDE,)))
        self.matmul = ops.MatMul(transpose_b=True).shard((devices("dp", "None"), devices(("sp", "mp"), "None")))
        self.bias_add = ops.Add().shard((devices("dp", ("sp", "mp")), devices(("sp", "mp"))))

    def construct(self, x):
        return self.bias_add(self.matmul(x, self.weight), self.bias)


def make_pretrained(dp, mp):
    return TwoLayers(False, dp, mp)


def make_tuned(dp, mp):
    network = TwoLayers(True, dp, mp)
    freeze_delta(network, "lora", exclude=["head.*"])
    return network
