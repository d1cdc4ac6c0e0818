"""How many numbers each method trains on the true architectures, beside the shares that the specification prints.

The networks are built with zeros, which MindSpore stores only when something reads them.
"""

import pytest

from mindpet.delta import PrefixEncoder
from mindpet.graph.freeze_utils import count_parameters
from mindpet.models.bert import BertConfig, BertForSequenceClassification
from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.config import (
    AdapterConfig,
    BitFitConfig,
    IA3Config,
    LoraConfig,
    LowRankAdapterConfig,
    PrefixConfig,
    PTuning2Config,
)

WIDTH, WIDE, LAYERS, WORDS, CLASSES = 768, 3072, 12, 21_128, 15
HEAD = WIDTH * CLASSES + CLASSES
# Embeddings with their norm; in each layer four dense layers of the attention, two of the feed-forward network and two
# norms; the pooler.
ENCODER = (
    (WORDS + 512 + 2) * WIDTH
    + 2 * WIDTH
    + LAYERS * (4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH * WIDE + WIDE + WIDTH + 2 * 2 * WIDTH)
    + (WIDTH * WIDTH + WIDTH)
)
BASE = ENCODER + HEAD

# A: query and value, two thin matrices each. B: two bottlenecks a layer. C: the same from thin matrices of rank 1 with
# 768 / 32 = 24 inner channels. D: every bias, the head's too; MindSpore calls a norm's shift `beta`, so it is no bias.
LORA = LAYERS * 2 * 8 * (WIDTH + WIDTH)
ADAPTER = LAYERS * 2 * (2 * WIDTH * 64 + 64 + WIDTH)
LOW_RANK = LAYERS * 2 * (2 * (WIDTH + WIDTH // 32) + WIDTH // 32 + WIDTH)
BIASES = LAYERS * (4 * WIDTH + WIDE + WIDTH) + WIDTH + CLASSES
# E: factors of key and value, and of the inputs of both `output.dense`, as PEFT places them.
IA3 = LAYERS * (2 * WIDTH + WIDTH + WIDE)
# F: for each layer a table of 16 tokens, and two dense layers. G: one table.
PREFIX = LAYERS * (16 * WIDTH + WIDTH * 512 + 512 + 512 * 2 * WIDTH + 2 * WIDTH)
PTUNING2 = 16 * LAYERS * 2 * WIDTH


@pytest.fixture(scope="module")
def bert_base():
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=12,
        intermediate_size=WIDE,
        max_position_embeddings=512,
        type_vocab_size=2,
        num_labels=CLASSES,
        initializer_range=0.0,
    )
    return BertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("config", "added", "trained"),
    [
        (LoraConfig(r=8), LORA, LORA + HEAD),
        (AdapterConfig(bottleneck_size=64), ADAPTER, ADAPTER + HEAD),
        (LowRankAdapterConfig(reduction_factor=32, low_rank_size=1), LOW_RANK, LOW_RANK + HEAD),
        (BitFitConfig(), 0, BIASES + WIDTH * CLASSES),
        (IA3Config(), IA3, IA3 + HEAD),
        (PrefixConfig(num_virtual_tokens=16, encoder_hidden_size=512), PREFIX, PREFIX + HEAD),
        (PTuning2Config(num_virtual_tokens=16), PTUNING2, PTUNING2 + HEAD),
    ],
    ids=lambda value: getattr(value, "method", None),
)
def test_bert_base_trains_what_the_formula_says(bert_base, config, added, trained):
    get_peft_model(bert_base, config.model_copy(update={"modules_to_save": ("classifier",)}))
    count = count_parameters(bert_base)
    detach(bert_base)
    assert (count.trainable, count.total) == (trained, BASE + added)


def test_the_golden_number_of_lora():
    # PEFT counts 102,585,630: it keeps the head that it has copied to train, another 11,535 numbers.
    assert (LORA + HEAD, BASE + LORA) == (306_447, 102_574_095)
    assert BASE + LORA + HEAD == 102_585_630


def _percent(part, whole, digits):
    return f"{part / whole:.{digits}%}"


def test_the_shares_that_the_specification_prints():
    # What is trained, the head with it, of all that the network then has.
    assert _percent(LORA + HEAD, BASE + LORA, 2) == "0.30%"
    assert _percent(LOW_RANK + HEAD, BASE + LOW_RANK, 3) == "0.067%"
    # The head's weight is trained beside all biases; with the biases alone it would be 0.08 %.
    assert _percent(BIASES + WIDTH * CLASSES, BASE, 2) == "0.09%"
    assert _percent(BIASES, BASE, 2) == "0.08%"
    # 2.33 % is what the adapters alone add to the network as it was. What is trained, head included, is 2.28 % of all,
    # as the other figures are counted, and 2.34 % of the network as it was.
    assert _percent(ADAPTER, BASE, 2) == "2.33%"
    assert _percent(ADAPTER + HEAD, BASE + ADAPTER, 2) == "2.28%"
    assert _percent(ADAPTER + HEAD, BASE, 2) == "2.34%"


def test_the_share_of_p_tuning_on_glm2_6b():
    hidden, wide, layers, words, groups, channels = 4096, 13_696, 28, 65_024, 2, 128
    keys_and_values = 2 * groups * channels
    attention = (hidden + keys_and_values) * hidden + hidden + keys_and_values + hidden * hidden
    feed_forward = 2 * wide * hidden + wide * hidden
    base = 2 * words * hidden + layers * (attention + feed_forward + 2 * hidden) + hidden
    assert base == 6_243_584_000
    # Without projection: 128 tokens with a key and a value of the two groups of heads in each layer.
    trained = count_parameters(PrefixEncoder(128, layers, groups, channels, False, 1, 0.0)).trainable
    assert trained == 128 * layers * keys_and_values == 1_835_008
    assert _percent(trained, base + trained, 2) == "0.03%"
