"""Prefixes against PEFT's prefix tuning in transformers, for the same keys and values."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

import mindpet
from mindpet.models.auto import load_causal_lm
from mindpet.models.bert import BertForSequenceClassification
from mindpet.models.generation import generate
from mindpet.tuning.state import state_of
from tests.methods import move_adapter

pytestmark = pytest.mark.slow

TOKENS, LAYERS, WIDTH = 3, 2, 24
SHARED = {"vocab_size": 51, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "hidden_size": WIDTH}
SHARED |= {"intermediate_size": 32, "max_position_embeddings": 16, "initializer_range": 0.3, "pad_token_id": 0}
FORMS = {
    "prefix tuning": mindpet.PrefixConfig(num_virtual_tokens=TOKENS, encoder_hidden_size=5, dropout_rate=0.0),
    "a table": mindpet.PTuning2Config(num_virtual_tokens=TOKENS),
    "a projected table": mindpet.PTuning2Config(
        num_virtual_tokens=TOKENS, prefix_projection=True, encoder_hidden_size=7
    ),
}


def prompt_of(network):
    """Return the keys and values that stand before each attention's, (tokens, layers * 2 * width of keys)."""
    rows = []
    for feed in state_of(network).feeds:
        width = feed.attention.num_heads * feed.attention.head_dim
        empty, mask = (mindspore.ops.zeros(shape, mindspore.float32) for shape in ((1, 1, width), (1, 1, 1, 1)))
        key, value, _ = feed.cell(empty, empty, mask)
        rows += [key.asnumpy()[0, :TOKENS], value.asnumpy()[0, :TOKENS]]
    return np.concatenate(rows, axis=1)


def with_their_prefix(model, task, prompt):
    """Attach PEFT's prefix tuning to a model of transformers and give it the prompt."""
    import peft
    import torch

    theirs = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=TOKENS))
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.tensor(prompt))
    return theirs.eval()


def attach(network, form, room):
    """Attach a prefix of larger numbers than the first ones, so that it tells."""
    mindpet.get_peft_model(network, FORMS[form], max_tokens=TOKENS + room)
    move_adapter(network)
    return network.set_train(False)


def texts(lengths=(9, 6, 7)):
    """Return input_ids and attention_mask of texts of some lengths, padded on the right."""
    ids = np.random.default_rng(3).integers(1, SHARED["vocab_size"], (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return ids * mask, mask


@pytest.mark.parametrize(
    ("form", "room"), [("prefix tuning", 0), ("a table", 0), ("a table", 2), ("a projected table", 0)]
)
def test_bert_gives_pefts_logits(tmp_path, form, room):
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SHARED, num_labels=3))
    model.save_pretrained(tmp_path)
    ours = attach(BertForSequenceClassification.from_pretrained(tmp_path), form, room)
    theirs = with_their_prefix(model, "SEQ_CLS", prompt_of(ours))
    ids, mask = texts()
    types = ids % 2
    with torch.no_grad():
        expected = theirs(*map(torch.tensor, (ids, mask)), token_type_ids=torch.tensor(types)).logits.numpy()
    logits = ours(*(Tensor(one.astype(np.int32)) for one in (ids, mask, types)))
    np.testing.assert_allclose(logits.asnumpy(), expected, rtol=0, atol=2e-5)


GROUPED = SHARED | {"num_key_value_heads": 2, "tie_word_embeddings": False}
ENDLESS = {"bos_token_id": None, "eos_token_id": None}
DECODERS = {
    "gpt2": {"n_layer": LAYERS, "n_head": 4, "n_embd": WIDTH, "n_positions": 16, "vocab_size": 51},
    "llama": GROUPED,
    "qwen2": GROUPED,
    "glm": GROUPED | {"head_dim": 6, "partial_rotary_factor": 0.5, "attention_bias": True},
}


def random_decoder(kind, folder):
    """Let transformers make and save a language model with weights of a size that tells."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **DECODERS[kind] | ENDLESS | {"initializer_range": 0.3})
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("form", ["prefix tuning", "a projected table"])
@pytest.mark.parametrize("kind", DECODERS)
def test_language_models_give_pefts_logits_and_tokens(tmp_path, kind, form):
    import torch

    model = random_decoder(kind, tmp_path)
    ours = attach(load_causal_lm(tmp_path, dropout=0.0), form, 2)
    theirs = with_their_prefix(model, "CAUSAL_LM", prompt_of(ours))
    ids, mask = texts()
    with torch.no_grad():
        expected = theirs(*map(torch.tensor, (ids, mask))).logits.numpy()
    logits = ours(*(Tensor(one.astype(np.int32)) for one in (ids, mask))).asnumpy()
    np.testing.assert_allclose(logits[mask > 0], expected[mask > 0], rtol=0, atol=1e-4)

    prompts, seen = ids[:, :4].copy(), mask[:, :4].copy()
    prompts[1, 0] = seen[1, 0] = 0  # padded on the left
    with torch.no_grad():
        continued = theirs.generate(
            input_ids=torch.tensor(prompts), attention_mask=torch.tensor(seen), max_new_tokens=5, do_sample=False
        )
    assert np.array_equal(generate(ours, prompts, seen, 5), continued[:, 4:].numpy())
