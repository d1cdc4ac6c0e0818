"""The tuning methods, one file each."""

from mindpet.delta.adapter import AdapterDense, AdapterLayer
from mindpet.delta.dora import DoRADense
from mindpet.delta.ia3 import IA3Dense
from mindpet.delta.lora import LoRADense
from mindpet.delta.lora_conv2d import LoRAConv2d
from mindpet.delta.lora_embedding import LoRAEmbedding
from mindpet.delta.low_rank_adapter import LowRankAdapterDense, LowRankAdapterLayer, LowRankLinear
from mindpet.delta.pissa import PiSSADense
from mindpet.delta.prefix_layer import PrefixLayer
from mindpet.delta.ptuning2 import PrefixEncoder
from mindpet.delta.r_drop import RDropLoss, rdrop_repeat
from mindpet.delta.trainable_tokens import TrainableTokensEmbedding
from mindpet.delta.vera import VeRADense, make_projection

__all__ = [
    "AdapterDense",
    "AdapterLayer",
    "DoRADense",
    "IA3Dense",
    "LoRAConv2d",
    "LoRADense",
    "LoRAEmbedding",
    "LowRankAdapterDense",
    "LowRankAdapterLayer",
    "LowRankLinear",
    "PiSSADense",
    "PrefixEncoder",
    "PrefixLayer",
    "RDropLoss",
    "TrainableTokensEmbedding",
    "VeRADense",
    "make_projection",
    "rdrop_repeat",
]
