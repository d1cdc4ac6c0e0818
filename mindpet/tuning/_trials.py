"""A small network around each delta layer, beside its float64 formula: what the self-test runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn

from mindpet.delta import (
    LoRAConv2d,
    LoRAEmbedding,
    PrefixEncoder,
    PrefixLayer,
    RDropLoss,
    TrainableTokensEmbedding,
    _reference,
    rdrop_repeat,
)
from mindpet.delta._cases import INPUTS, LAYERS, OUTPUTS, Layer, random_input
from mindpet.delta._reference import Array
from mindpet.graph import freeze_delta
from mindpet.utils.names import STATE_MARK

__all__ = ["TRIALS", "Trial"]

BATCH, LENGTH = 2, 3
HEADS, CHANNELS, TOKENS = 2, 3, 2
_STATES = (BATCH, HEADS, LENGTH, CHANNELS)
_CAUSAL = np.tril(np.ones((BATCH, 1, LENGTH, LENGTH)))
_CLASSES = 3
_LABELS = np.array([0, 0, 2, 2], np.int32)
_IDS = np.array([[0, 5, 2], [2, 1, 2]], np.int32)
_PROBABILITIES = np.where(_LABELS[:, None] == np.arange(_CLASSES), 0.75, 0.125)


@dataclass(frozen=True)
class Trial:
    """A layer, how to call it and what it must compute.

    Attributes:
        layer: The public name.
        build: Makes, from a MindSpore dtype, a network that returns a tuple; its child `layer` holds all parameters.
        formula: `formula(inputs, parameters)` in NumPy, with the parameters by their names inside `layer`. It returns
            the same tuple.
        inputs: The arguments of the network, in float64; each dtype holds them exactly.
        trains: Tells by its name which parameter has a gradient.
        detached: What the formula takes from the parameters and the gradient leaves out, as further entries for them.
    """

    layer: str
    build: Callable[[Any], nn.Cell]
    formula: Callable[[Sequence[Array], Mapping[str, Array]], tuple[Array, ...]]
    inputs: tuple[Array, ...]
    trains: Callable[[str], bool] = lambda name: STATE_MARK not in name and "lora_first" not in name
    detached: Callable[[dict[str, Array]], dict[str, Array]] = lambda parameters: {}


class _Alone(nn.Cell):
    """A layer of one output."""

    def __init__(self, layer: nn.Cell) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(x),)


class _Embedded(nn.Cell):
    """The embeddings of fixed ids, to which the input is added."""

    def __init__(self, layer: nn.Cell) -> None:
        super().__init__()
        self.layer = layer
        self.ids = Tensor(_IDS)

    def construct(self, x: Tensor) -> tuple[Tensor]:
        return (self.layer(self.ids).astype(x.dtype) + x,)


class _ExtendedByLayer(nn.Cell):
    """Keys, values and mask that each example's slice of a PrefixLayer extends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PrefixLayer(BATCH * TOKENS, BATCH, HEADS, HEADS * CHANNELS, 5, 6, dropout_rate=0.0)
        self.mask = Tensor(_CAUSAL, mindspore.float32)

    def construct(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.layer.extend(key, value, self.mask)


class _ExtendedByEncoder(nn.Cell):
    """Keys, values and mask that the second of a PrefixEncoder's two layers extends."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PrefixEncoder(TOKENS, 2, HEADS, CHANNELS, True, 5, 0.0)
        self.mask = Tensor(_CAUSAL, mindspore.float32)

    def construct(self, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        first, second = self.layer(BATCH, key.dtype)
        return (first, *self.layer.extend(second, key, value, self.mask))


class _BothLosses(nn.Cell):
    """R-Drop's loss with class indices and with class probabilities."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.layer = RDropLoss()
        self.indices = Tensor(_LABELS)
        self.probabilities = Tensor(_PROBABILITIES, mindspore.float32).astype(dtype)

    def construct(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(logits, self.indices), self.layer(logits, self.probabilities)


class _Repeated(nn.Cell):
    """Two tensors repeated for R-Drop."""

    def construct(self, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        return rdrop_repeat(first, second)


def _dense_trial(layer: Layer) -> Trial:
    """Return the trial of a layer on rows, with bias and GELU."""
    activation = {"activation": "gelu"} if layer.has_base else {}
    form = " (feedforward)" if layer.sizes.get("feedforward") else ""
    return Trial(
        layer.cell.__name__ + form,
        lambda dtype: _Alone(layer.make(param_init_type=dtype, compute_dtype=dtype, **activation)),
        lambda inputs, parameters: (layer.formula(inputs[0], parameters, "gelu"),),
        (random_input((BATCH, LENGTH, INPUTS), np.float64),),
        detached=layer.detached,
    )


def _extend_by_layer(inputs: Sequence[Array], parameters: Mapping[str, Array]) -> tuple[Array, ...]:
    pasts = (
        past.reshape(BATCH, TOKENS, HEADS, CHANNELS).transpose(0, 2, 1, 3)
        for past in _reference.prefix_layer(parameters)
    )
    return (*_prepend(pasts, inputs), _extend_mask(HEADS))


def _extend_by_encoder(inputs: Sequence[Array], parameters: Mapping[str, Array]) -> tuple[Array, ...]:
    first, second = _reference.prefix_encoder(parameters, BATCH, 2, HEADS)
    return (first, *_prepend(second, inputs), _extend_mask(1))


def _prepend(pasts: Any, inputs: Sequence[Array]) -> list[Array]:
    return [np.concatenate(pair, 2) for pair in zip(pasts, inputs, strict=True)]


def _extend_mask(heads: int) -> Array:
    visible = np.ones((BATCH, 1, LENGTH, TOKENS))
    return np.repeat(np.concatenate((visible, _CAUSAL), -1), heads, 1)


def _build_bitfit(dtype: Any) -> nn.Cell:
    layers = nn.Dense(INPUTS, 5, dtype=dtype), nn.Tanh(), nn.Dense(5, OUTPUTS, dtype=dtype)
    network = _Alone(nn.SequentialCell(*layers))
    freeze_delta(network, "bitfit")
    return network


def _two_dense(inputs: Sequence[Array], parameters: Mapping[str, Array]) -> tuple[Array]:
    first, second = ({name: parameters[f"{index}.{name}"] for name in ("weight", "bias")} for index in (0, 2))
    return (_reference.dense(_reference.dense(inputs[0], first, "tanh"), second),)


_STATE_INPUTS = (random_input(_STATES, np.float64, 1), random_input(_STATES, np.float64, 2))

TRIALS = (
    *map(_dense_trial, LAYERS.values()),
    Trial(
        "LoRAEmbedding",
        lambda dtype: _Embedded(LoRAEmbedding(INPUTS, OUTPUTS, 2, 3, param_init_type=dtype, compute_dtype=dtype)),
        lambda inputs, parameters: (_reference.lora_embedding(_IDS, parameters, 1.5) + inputs[0],),
        (random_input((*_IDS.shape, OUTPUTS), np.float64),),
    ),
    Trial(
        "TrainableTokensEmbedding",
        lambda dtype: _Embedded(TrainableTokensEmbedding(INPUTS, OUTPUTS, (5, 0), param_init_type=dtype)),
        lambda inputs, parameters: (_reference.tokens_embedding(_IDS, parameters) + inputs[0],),
        (random_input((*_IDS.shape, OUTPUTS), np.float64),),
    ),
    Trial(
        "LoRAConv2d",
        lambda dtype: _Alone(
            LoRAConv2d(
                *(2, 4, 2, 2, 3), param_init_type=dtype, compute_dtype=dtype, pad_mode="valid", group=2, has_bias=True
            )
        ),
        lambda inputs, parameters: (_reference.lora_conv2d(inputs[0], parameters, 1.5),),
        (random_input((BATCH, 2, 3, 4), np.float64),),
    ),
    Trial("PrefixLayer", lambda dtype: _ExtendedByLayer(), _extend_by_layer, _STATE_INPUTS),
    Trial("PrefixEncoder", lambda dtype: _ExtendedByEncoder(), _extend_by_encoder, _STATE_INPUTS),
    Trial(
        "RDropLoss",
        _BothLosses,
        lambda inputs, _: tuple(
            np.array(_reference.r_drop_loss(inputs[0], labels)) for labels in (_LABELS, _PROBABILITIES)
        ),
        (random_input((len(_LABELS), _CLASSES), np.float64),),
    ),
    Trial(
        "rdrop_repeat",
        lambda dtype: _Repeated(),
        lambda inputs, _: tuple(np.repeat(item, 2, 0) for item in inputs),
        (random_input((BATCH, LENGTH, INPUTS), np.float64), random_input((BATCH,), np.float64)),
    ),
    Trial(
        "freeze_delta (BitFit)",
        _build_bitfit,
        _two_dense,
        (random_input((BATCH, LENGTH, INPUTS), np.float64),),
        trains=lambda name: name.endswith("bias"),
    ),
)
