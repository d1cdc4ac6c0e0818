"""The networks that the planner is asked about, by name."""

from dataclasses import replace
from functools import partial

from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer

from mindpet.delta import AdapterDense, AdapterLayer, LoRADense, LowRankAdapterDense, LowRankAdapterLayer
from mindpet.delta._activations import ACTIVATIONS
from mindpet.graph import freeze_delta
from tests.delta.test_shard import EXAMPLES
from tests.planner.planner import Case

ROWS = 64

# The layers of the specification's examples, with an activation so that each strategy meets its primitive.
EXAMPLE_LAYERS = {
    LoRADense: partial(LoRADense, 1 * 28 * 28, 512, lora_rank=8, lora_alpha=16, lora_dropout=0.1, activation="relu"),
    AdapterDense: partial(AdapterDense, 1 * 28 * 28, 512, bottleneck_size=64, activation="relu"),
    AdapterLayer: partial(AdapterLayer, 512, bottleneck_size=64),
    LowRankAdapterDense: partial(LowRankAdapterDense, 1 * 28 * 28, 512, reduction_factor=8, activation="relu"),
    LowRankAdapterLayer: partial(LowRankAdapterLayer, 512, reduction_factor=8, low_rank_size=1),
}


def _example(cell, **changed):
    strategies = {keyword: strategy for keyword, (strategy, _) in EXAMPLES[cell].items()} | changed
    make = EXAMPLE_LAYERS[cell]
    return Case(lambda: make().shard(**strategies), (ROWS, make.args[0]))


def _unsharded(cell):
    make = EXAMPLE_LAYERS[cell]
    return Case(lambda: make().shard(), (ROWS, make.args[0]), full_batch=False)


# How a base layer's product is split, as `Primitive.shard` takes it for transpose_b=True.
BASES = {
    "columns": ((2, 1), (4, 1)),
    "rows": ((2, 4), (1, 4)),
    "both": ((2, 2), (2, 2)),
}
INPUTS, OUTPUTS = 256, 512
FROM_DENSE = {
    LoRADense: partial(LoRADense.from_dense, lora_rank=8, lora_alpha=16, lora_dropout=0.1),
    AdapterDense: partial(AdapterDense.from_dense, bottleneck_size=64),
    LowRankAdapterDense: partial(LowRankAdapterDense.from_dense, reduction_factor=8, low_rank_size=4),
}


def _like(cell, split, full=True, activation="relu", transpose_b=True, shape=(ROWS, INPUTS)):
    """Return the case of a layer in the place of a dense layer and split as it is, `full` with bias and activation."""

    def build():
        base = nn.Dense(INPUTS, OUTPUTS, has_bias=full, activation=activation if full else None)
        of_rows, of_weight = BASES[split]
        if not transpose_b:
            of_weight = of_weight[::-1]
            base.weight = Parameter(initializer("normal", (INPUTS, OUTPUTS)), name="weight")
        base.matmul = ops.MatMul(transpose_b=transpose_b).shard((of_rows, of_weight))
        return FROM_DENSE[cell](base).shard_like(base)

    return Case(build, shape)


class _MeanOf(nn.Cell):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.mean = ops.ReduceMean()

    def construct(self, x):
        return self.mean(self.layer(x))


def _trained(case, mode):
    """Return the case of a training step that moves the added parameters of the layer of `case`."""

    def build():
        network = _MeanOf(case.build())
        freeze_delta(network, mode)
        return nn.TrainOneStepCell(network, nn.Momentum(network.trainable_params(), 0.1, 0.9))

    return replace(case, build=build)


# An activation over an axis cannot be computed from a part of it.
OVER_CHANNELS = ("softmin", "softmax")
OVER_GROUPS = ("softmax2d",)
SHARDED_ACTIVATIONS = [name for name in ACTIVATIONS if not name.lower().startswith("logsoftmax")]


def split_of(name):
    """Return a split of the input of the activation `name` that the planner should take."""
    if name in OVER_GROUPS:
        return (2, 1, 1, 2)
    return (2, 1) if name in OVER_CHANNELS else (2, 4)


def _activated(name, split, parallel_mode="semi_auto_parallel"):
    """Return the case of a layer with the activation `name` after its base and in its bottleneck, both split."""

    def build():
        layer = AdapterDense(32, 64, bottleneck_size=16, activation=name, non_linearity=name)
        return layer.shard(strategy_activation_org=(split,), strategy_non_linearity=(split,))

    return Case(build, (16, 8, 4, 32) if name in OVER_GROUPS else (16, 32), parallel_mode=parallel_mode)


CASES = {
    **{f"{cell.__name__} example": _example(cell) for cell in EXAMPLE_LAYERS},
    "LoRADense example, auto_parallel": replace(_example(LoRADense), parallel_mode="auto_parallel"),
    "LoRADense example, two entries": _example(LoRADense, strategy_activation=((2, 4), (2, 4))),
    "LoRADense example, 16 devices": _example(LoRADense, strategy_lora_add=((2, 8), (2, 8))),
    "LoRADense example, lora_b in two": _example(LoRADense, strategy_lora_b_matmul=((2, 1), (2, 1))),
    **{f"{cell.__name__} unsharded": _unsharded(cell) for cell in EXAMPLE_LAYERS},
    **{
        f"{cell.__name__} like {split}, {'full' if full else 'bare'}": _like(cell, split, full)
        for cell in FROM_DENSE
        for split in ("columns", "rows")
        for full in (True, False)
    },
    "LoRADense like both": _like(LoRADense, "both"),
    "LoRADense like columns, transposed": _like(LoRADense, "columns", transpose_b=False),
    "LoRADense like rows, transposed": _like(LoRADense, "rows", transpose_b=False),
    "LoRADense like columns, softmax": _like(LoRADense, "columns", activation="softmax"),
    "LoRADense like columns, three axes": _like(LoRADense, "columns", shape=(16, 4, INPUTS)),
    "LoRADense like columns, trained": _trained(_like(LoRADense, "columns"), "lora"),
    "AdapterDense like columns, trained": _trained(_like(AdapterDense, "columns"), "adapter"),
    "LowRankAdapterDense like columns, trained": _trained(_like(LowRankAdapterDense, "columns"), "low_rank_adapter"),
    **{f"activation {name}": _activated(name, split_of(name)) for name in SHARDED_ACTIVATIONS},
    **{f"activation {name}, channels cut": _activated(name, (2, 4)) for name in OVER_CHANNELS},
    "activation logsoftmax, semi_auto_parallel": _activated("logsoftmax", (2, 1)),
    "activation logsoftmax, auto_parallel": _activated("logsoftmax", (2, 1), "auto_parallel"),
}
