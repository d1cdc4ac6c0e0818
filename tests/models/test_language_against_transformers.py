"""The language models against transformers, on folders that transformers has written, of odd shapes."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindpet import kernels
from mindpet.models._loading import file_name
from mindpet.models.auto import load_causal_lm
from mindpet.models.generation import Sampling, generate
from tests.models.numpy_language import CHATGLM, write_folder

pytestmark = pytest.mark.slow

VOCABULARY = 101
TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 2}
GPT2 = TOKENS | {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 40, "n_layer": 2, "n_head": 5}
LLAMA = TOKENS | {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "intermediate_size": 52,
}
GLM = LLAMA | {"head_dim": 8}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0, "beta_slow": 0.5}

CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2, narrow feed-forward": ("GPT2", GPT2 | {"n_inner": 7, "activation_function": "gelu_fast"}),
    "gpt2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "activation_function": "silu"}),
    "gpt2, one head": ("GPT2", GPT2 | {"n_head": 1, "layer_norm_epsilon": 0.1, "activation_function": "gelu_python"}),
    "gpt2, upcast": ("GPT2", GPT2 | {"reorder_and_upcast_attn": True}),
    "llama": ("Llama", LLAMA),
    "llama, wide heads": ("Llama", LLAMA | {"hidden_size": 36, "head_dim": 6, "num_key_value_heads": 5}),
    "llama, biases": ("Llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True, "hidden_act": "gelu", "rms_norm_eps": 0.1}),
    "llama 3": ("Llama", LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}}),
    "llama, stretched": ("Llama", LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama, dynamic": ("Llama", LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama, yarn": ("Llama", LLAMA | {"rope_scaling": YARN}),
    "qwen2, yarn": ("Qwen2", LLAMA | {"rope_scaling": YARN | {"mscale": 2.0, "mscale_all_dim": 0.5}}),
    "glm, yarn": ("Glm", GLM | {"head_dim": 16, "rope_scaling": YARN | {"attention_factor": 0.7, "truncate": False}}),
    "qwen2": ("Qwen2", LLAMA),
    "qwen2, tied": ("Qwen2", LLAMA | {"tie_word_embeddings": True, "num_key_value_heads": 5, "hidden_act": "relu"}),
    "qwen2, windows unused": ("Qwen2", LLAMA | {"use_sliding_window": True, "max_window_layers": 2}),
    "glm": ("Glm", GLM),
    "glm, no biases": (
        "Glm",
        GLM | {"attention_bias": False, "tie_word_embeddings": True, "hidden_act": "gelu_accurate"},
    ),
    "glm, an odd number rotated": ("Glm", GLM | {"head_dim": 10}),
    "glm, a quarter rotated": ("Glm", GLM | {"head_dim": 16, "partial_rotary_factor": 0.25}),
}


def save_theirs(kind, config, folder):
    """Let transformers write a random model; norms and biases, which start at 1 and 0, are random too."""
    import torch
    import transformers

    torch.manual_seed(0)
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    theirs = getattr(transformers, f"{kind}Config")(**config, initializer_range=0.3, attn_implementation="eager")
    model = getattr(transformers, name)(theirs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def padded_batch(batch=3, length=20):
    """Padding on the left, on the right and nowhere."""
    input_ids = np.random.default_rng(0).integers(0, VOCABULARY, (batch, length)).astype(np.int32)
    attention_mask = np.ones_like(input_ids)
    attention_mask[0, :5] = 0
    attention_mask[1, -6:] = 0
    return input_ids, attention_mask


def their_logits(model, input_ids, attention_mask):
    import torch

    positions = np.maximum(attention_mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        return model(
            torch.tensor(input_ids),
            attention_mask=torch.tensor(attention_mask),
            position_ids=torch.tensor(positions),
        ).logits.numpy()


def check(net, model, batch):
    ours = net.set_train(False)(*map(Tensor, batch)).asnumpy()
    shown = batch[1] > 0
    tolerance = 2e-4 if model.config.model_type == "gpt2" else 1e-4
    np.testing.assert_allclose(ours[shown], their_logits(model, *batch)[shown], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_logits(tmp_path, case):
    model = save_theirs(*CASES[case], tmp_path)
    check(load_causal_lm(tmp_path), model, padded_batch())


@pytest.mark.parametrize("case", ["gpt2", "llama, biases", "glm"])
def test_logits_of_a_graph(tmp_path, case):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    model = save_theirs(*CASES[case], tmp_path)
    check(load_causal_lm(tmp_path), model, padded_batch())


@pytest.mark.parametrize("groups", [2, 4])
def test_chatglm2_against_glm(tmp_path, groups):
    """The weights of a Glm, fused and named as in a ChatGLM2."""
    shape = {"num_attention_heads": 4, "num_key_value_heads": groups, "head_dim": 12}
    model = save_theirs("Glm", LLAMA | shape, tmp_path / "glm")
    config = CHATGLM | {"padded_vocab_size": VOCABULARY, "hidden_size": 40, "ffn_hidden_size": 52, "num_layers": 2}
    config |= {"kv_channels": 12, "multi_query_group_num": groups, "layernorm_epsilon": model.config.rms_norm_eps}
    tensors = {name: values.numpy() for name, values in model.state_dict().items()}
    write_folder(tmp_path / "chatglm", config, _as_chatglm(tensors))
    net = load_causal_lm(tmp_path / "chatglm")
    assert net.config.model_type == "chatglm"
    check(net, model, padded_batch())


def _as_chatglm(tensors):
    names = {
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.norm": "transformer.encoder.final_layernorm",
        "lm_head": "transformer.output_layer",
        "model.layers": "transformer.encoder.layers",
        "self_attn.o_proj": "self_attention.dense",
        "mlp.gate_up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
        "self_attn.q_proj": "self_attention.query_key_value",
    }
    fused = {}
    for name, values in tensors.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            values = np.concatenate([tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        fused[name] = values
    return fused


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_shards_in_half_precision(tmp_path, dtype):
    import torch

    model = save_theirs("Llama", LLAMA, tmp_path / "whole").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    whole = type(model).from_pretrained(tmp_path / "shards", dtype=torch.float32).eval()
    check(load_causal_lm(tmp_path / "shards"), whole, padded_batch())


@pytest.mark.parametrize("case", ["gpt2", "qwen2", "glm"])
def test_gradients_of_all_parameters(tmp_path, case):
    import torch

    model = save_theirs(*CASES[case], tmp_path)
    input_ids, _ = padded_batch(2, 9)
    model(torch.tensor(input_ids), labels=torch.tensor(input_ids).long()).loss.backward()
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    net = load_causal_lm(tmp_path).set_train(False)
    targets = Tensor(np.pad(input_ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1).ravel())

    def loss(tokens):
        logits = net(tokens, mindspore.ops.ones_like(tokens))
        return kernels.cross_entropy(logits.reshape((-1, VOCABULARY)), targets)

    parameters = net.trainable_params()
    gradients = mindspore.grad(loss, None, weights=parameters)(Tensor(input_ids))
    assert {file_name(parameter.name) for parameter in parameters} == expected.keys()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        theirs = expected[file_name(parameter.name)]
        theirs = (
            theirs.T
            if file_name(parameter.name).endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
            else theirs
        )
        tolerance = 1e-4 * max(0.1, np.abs(theirs).max())
        np.testing.assert_allclose(gradient.asnumpy(), theirs, rtol=0, atol=tolerance, err_msg=parameter.name)


def their_tokens(model, input_ids, attention_mask, count, **options):
    import torch

    found = model.generate(
        input_ids=torch.tensor(input_ids),
        attention_mask=torch.tensor(attention_mask),
        max_new_tokens=count,
        do_sample=False,
        **options,
    )
    return found.numpy()[:, input_ids.shape[1] :]


def prompts():
    input_ids, attention_mask = padded_batch(3, 7)
    attention_mask[:] = 1
    attention_mask[0, :3] = 0
    attention_mask[2, :1] = 0
    return input_ids, attention_mask


@pytest.mark.parametrize("case", ["gpt2", "llama", "glm"])
def test_the_likeliest_tokens(tmp_path, case):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    model = save_theirs(*CASES[case], tmp_path)
    model.generation_config.eos_token_id = None
    net = load_causal_lm(tmp_path)
    free = their_tokens(model, *prompts(), 12, eos_token_id=None, pad_token_id=0)
    np.testing.assert_array_equal(generate(net, *prompts(), 12), free)
    end = int(free[0, 3])
    ended = their_tokens(model, *prompts(), 12, eos_token_id=end, pad_token_id=end)
    np.testing.assert_array_equal(generate(net, *prompts(), 12, eos_token_ids=end), ended)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.7, None, None), (1.3, 5, None), (1.0, None, 0.8), (0.9, 9, 0.5), (1, None, 1e-6)],
)
def test_probabilities(temperature, top_k, top_p):
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    logits[0, 3] = logits[0, 4]
    scores = TemperatureLogitsWarper(float(temperature))(None, torch.tensor(logits))
    scores = scores if top_k is None else TopKLogitsWarper(top_k)(None, scores)
    scores = scores if top_p is None else TopPLogitsWarper(top_p)(None, scores)
    found = Sampling(temperature, top_k, top_p).probabilities(logits)
    np.testing.assert_allclose(found, scores.softmax(-1).numpy(), atol=1e-6)


@pytest.mark.parametrize("case", ["gpt2", "llama", "glm"])
def test_a_prefix_generates_as_in_peft(tmp_path, case):
    import peft
    import torch

    import mindpet

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    model = save_theirs(*CASES[case], tmp_path)
    net = mindpet.get_peft_model(load_causal_lm(tmp_path), mindpet.PTuning2Config(num_virtual_tokens=4))
    (table,) = net.trainable_params()
    table.set_data(Tensor(np.random.default_rng(3).normal(size=table.shape).astype(np.float32)))
    theirs = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(torch.tensor(table.asnumpy()))
    expected = their_tokens(theirs, *prompts(), 8, eos_token_id=None, pad_token_id=0)
    np.testing.assert_array_equal(generate(net, *prompts(), 8), expected)
