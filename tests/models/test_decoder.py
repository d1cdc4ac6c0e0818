"""The decoder against its formula in NumPy and float64: Llama, Qwen2, GLM and ChatGLM2."""

import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from mindpet import kernels
from mindpet.kernels.switch import missing
from mindpet.models._config import BertConfig
from mindpet.models._gpt2_config import GPT2Config
from mindpet.models._loading import file_name
from mindpet.models._rope import Rope
from mindpet.models.auto import load_causal_lm
from mindpet.models.decoder import DecoderConfig, DecoderForCausalLM
from mindpet.models.generation import generate
from mindpet.tuning.accelerate import accelerate
from mindpet.utils.exceptions import InputError
from tests.models import numpy_language
from tests.models.numpy_language import CHATGLM, GLM, LLAMA, QWEN2, random_batch, random_tensors, write_folder

SHALLOW = LLAMA | {"num_hidden_layers": 1}


def run(net, input_ids, attention_mask):
    return net.set_train(False)(Tensor(input_ids), Tensor(attention_mask)).asnumpy()


def check(net, config, batch, tensors=None, tolerance=1e-4):
    shown = batch[1] > 0
    expected = numpy_language.logits(random_tensors(config) if tensors is None else tensors, config, *batch)
    np.testing.assert_allclose(run(net, *batch)[shown], expected[shown], rtol=0, atol=tolerance)


@pytest.mark.parametrize("config", [LLAMA, GLM], ids=["llama", "glm"])
def test_logits(tmp_path, mode, config):
    check(load_causal_lm(write_folder(tmp_path, config)), config, random_batch())


ODD = {
    "one head of keys": SHALLOW | {"num_key_value_heads": 1, "num_attention_heads": 5, "hidden_size": 11},
    "tied": SHALLOW | {"tie_word_embeddings": True, "rope_theta": 10000.0},
    "gate by gelu": SHALLOW | {"hidden_act": "gelu", "rms_norm_eps": 0.1},
    "qwen2": QWEN2,
    "glm that rotates all": GLM | {"partial_rotary_factor": 1.0},
    "glm that rotates an odd number": GLM | {"head_dim": 10, "attention_bias": False},
    "chatglm2": CHATGLM,
    "chatglm2 without groups": CHATGLM | {"multi_query_attention": False, "add_qkv_bias": False},
}


@pytest.mark.parametrize("case", ODD)
def test_odd_shapes(tmp_path, case):
    net = load_causal_lm(write_folder(tmp_path, ODD[case]))
    check(net, ODD[case], random_batch(2, 6))
    assert net.config.model_type == ODD[case]["model_type"]


NATIVE = pytest.mark.skipif(missing() is not None, reason=f"no native kernels: {missing()}")


@pytest.fixture
def choose_kernels():
    before = kernels.kernels_in_use()
    yield kernels.use_kernels
    kernels.use_kernels(before)


@pytest.mark.parametrize("kind", ["off", pytest.param("f32", marks=NATIVE)])
def test_both_kinds_of_kernels(tmp_path, kind, choose_kernels):
    choose_kernels(kind)
    check(load_causal_lm(write_folder(tmp_path, SHALLOW)), SHALLOW, random_batch())


def test_biases_everywhere(tmp_path):
    config = SHALLOW | {"attention_bias": True, "mlp_bias": True}
    tensors = random_tensors(config)
    rng = np.random.default_rng(4)
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        rows = tensors[f"model.layers.0.{name}.weight"].shape[:1]
        tensors[f"model.layers.0.{name}.bias"] = rng.normal(size=rows).astype(np.float32)
    check(load_causal_lm(write_folder(tmp_path, config, tensors)), config, random_batch(), tensors)


def test_later_tokens_and_padding_change_nothing(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, SHALLOW))
    ids = random_batch()[0]
    ones = np.ones_like(ids)
    plain = run(net, ids, ones)
    for padding in ((0, 4), (4, 0)):
        padded = run(net, *(np.pad(array, ((0, 0), padding)) for array in (ids, ones)))
        np.testing.assert_allclose(padded[:, padding[0] :][:, :7], plain, rtol=0, atol=1e-5)
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 37
    np.testing.assert_array_equal(run(net, changed, ones)[:, :4], plain[:, :4])


def test_gradients(tmp_path, mode):
    """The loss's slope along a random direction, for one parameter of each kind, against the float64 formula."""
    config = GLM | {"tie_word_embeddings": True}
    net = load_causal_lm(write_folder(tmp_path, config)).set_train()
    batch, tensors = random_batch(2, 5), random_tensors(config)
    targets = np.where(batch[1] > 0, np.roll(batch[0], -1, 1), -1)
    targets[:, -1] = -1

    def expected(name, distance):
        moved = tensors | {name: tensors[name].astype(np.float64) + distance * directions[name]}
        rows = numpy_language.logits(moved, config, *batch).reshape(-1, 37)
        return numpy_language.formulas.cross_entropy(rows, targets.ravel())

    def loss(input_ids, attention_mask):
        return kernels.cross_entropy(net(input_ids, attention_mask).reshape((-1, 37)), Tensor(targets.ravel()))

    layer = "model.layers.0"
    names = ["model.embed_tokens.weight", "model.norm.weight", f"{layer}.input_layernorm.weight"]
    names += [f"{layer}.self_attn.{one}" for one in ("q_proj.weight", "k_proj.bias", "o_proj.weight")]
    names += [f"{layer}.mlp.gate_up_proj.weight"]
    rng = np.random.default_rng(5)
    directions = {name: rng.normal(size=tensors[name].shape) for name in names}
    parameters = {file_name(parameter.name): parameter for parameter in net.trainable_params()}
    assert parameters.keys() == tensors.keys()
    gradients = mindspore.grad(loss, grad_position=None, weights=[parameters[name] for name in names])(
        *map(Tensor, batch)
    )
    for name, gradient in zip(names, gradients, strict=True):
        slope = (expected(name, 1e-5) - expected(name, -1e-5)) / 2e-5
        assert np.vdot(gradient.asnumpy(), directions[name]) == pytest.approx(slope, rel=2e-3, abs=2e-5), name


@pytest.mark.parametrize("kind", ["off", pytest.param("f32", marks=NATIVE)])
def test_a_norm_gets_its_gradient_only_while_it_is_trained(tmp_path, mode, kind, choose_kernels):
    """The others' gradients are the same whether it trains or not."""
    choose_kernels(kind)
    net = load_causal_lm(write_folder(tmp_path, SHALLOW)).set_train()
    layer = net.model.layers[0]
    norms = [layer.input_layernorm.weight, layer.post_attention_layernorm.weight, net.model.norm.weight]
    inputs = tuple(map(Tensor, random_batch()))

    def gradients():
        def loss(*inputs):
            return (net(*inputs) ** 2).sum()

        by_weights = mindspore.grad(loss, None, [*norms, layer.self_attn.q_proj.weight])(*inputs)
        return [gradient.asnumpy() for gradient in by_weights]

    trained = gradients()
    for weight in norms:
        weight.requires_grad = False
    frozen = gradients()
    for weight in norms:
        weight.requires_grad = True
    again = gradients()
    assert all(one.any() for one in trained)
    assert not any(one.any() for one in frozen[:3])
    np.testing.assert_allclose(frozen[3], trained[3], rtol=1e-5, atol=1e-5 * np.abs(trained[3]).max())
    assert all((one == other).all() for one, other in zip(trained, again, strict=True))


def test_half_activations(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, SHALLOW), compute_dtype=mindspore.float16)
    assert net.features(*map(Tensor, random_batch())).dtype == mindspore.float16
    assert net(*map(Tensor, random_batch())).dtype == mindspore.float32
    check(net, SHALLOW, random_batch(), tolerance=0.06)


def test_half_activations_of_an_accelerated_network_in_a_graph(tmp_path):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    net = load_causal_lm(write_folder(tmp_path, SHALLOW), compute_dtype=mindspore.float16)
    expected = net(*map(Tensor, random_batch())).asnumpy()
    accelerate(net)
    np.testing.assert_array_equal(net(*map(Tensor, random_batch())).asnumpy(), expected)


def test_dropout_acts_in_training_only(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, SHALLOW), dropout=0.5)
    inputs = tuple(map(Tensor, random_batch()))
    resting = net.set_train(False)(*inputs).asnumpy()
    assert np.abs(net.set_train()(*inputs).asnumpy() - resting).max() > 1e-3


def test_a_sequence_that_is_too_long_is_refused(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, SHALLOW))
    with pytest.raises(ValueError, match=r"33 tokens.*at most 32"):
        run(net, *random_batch(1, 33))


@pytest.mark.parametrize("config", [LLAMA, QWEN2, GLM], ids=["llama", "qwen2", "glm"])
def test_paths_are_those_of_transformers(tmp_path, config):
    net = load_causal_lm(write_folder(tmp_path, config))
    cells = dict(net.cells_and_names())
    assert isinstance(cells["model.layers.0.self_attn.q_proj"], nn.Dense)
    assert isinstance(cells["lm_head"], nn.Dense)
    assert {name.rpartition(".")[0] for name in random_tensors(config)} <= cells.keys()
    for name, parameter in net.parameters_and_names():
        assert name == parameter.name
    assert (net.lm_head.weight is net.model.embed_tokens.embedding_table) == config["tie_word_embeddings"]


def test_attentions_say_how_large_their_keys_are(tmp_path):
    net = load_causal_lm(write_folder(tmp_path, LLAMA))
    attention = net.model.layers[1].self_attn
    assert (attention.num_heads, attention.head_dim, attention.prefix) == (2, 6, None)
    assert (net.config.max_position_embeddings, net.config.vocab_size, net.config.eos_token_id) == (32, 37, (3, 4))


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, [1, 0.1, 0.01]),
        ({"rope_type": "default"}, [1, 0.1, 0.01]),
        ({"type": "linear", "factor": 4.0}, [0.25, 0.025, 0.0025]),
        # Of wavelengths 6.3, 63 and 628 the first is short, the last long, and 63 lies 0.13/0.5 of the way between.
        (
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 0.5,
                "high_freq_factor": 1.0,
                "original_max_position_embeddings": 40,
            },
            [1, 0.1 * (0.5 + 0.5 * (40 / (20 * np.pi) - 0.5) / 0.5), 0.005],
        ),
        # In 40 positions pair 0 turns 6.4 times, pair 1 0.64 times, pair 2 0.064 times.
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 6.0, "beta_slow": 0.6}, [1, 0.1 * (0.5 + 0.5 / 4), 0.0025]),
        (
            {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20 / np.pi, "beta_slow": 0.2 / np.pi, "truncate": False},
            [1, 0.1 * (0.5 + 0.5 / 4), 0.0025],
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, [1, 0.1, 0.01]),
    ],
)
def test_frequencies(scaling, expected):
    np.testing.assert_allclose(Rope.from_values(1000.0, scaling, 40).frequencies(6), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "factor", "longest"),
    [
        ({}, 0.1 * np.log(4) + 1, 160),
        ({"mscale": 2.0}, 0.1 * np.log(4) + 1, 160),
        ({"mscale": 2.0, "mscale_all_dim": 0}, 0.1 * np.log(4) + 1, 160),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * np.log(4) + 1) / (0.1 * np.log(4) + 1), 160),
        ({"attention_factor": 1.5, "original_max_position_embeddings": 9, "beta_fast": None}, 1.5, 40),
        ({"factor": 0.5}, 1.0, 40),
        ({"rope_type": "dynamic", "original_max_position_embeddings": 30}, 1.0, 30),
    ],
)
def test_scaled_positions(scaling, factor, longest):
    values = {"rope_type": "yarn", "factor": 4.0} | scaling
    config = DecoderConfig.from_dict(LLAMA | {"max_position_embeddings": 40, "rope_scaling": values})
    assert config.rope.attention_factor == pytest.approx(factor)
    assert config.max_position_embeddings == longest


def test_a_text_is_too_long_for_dynamic_positions(tmp_path):
    dynamic = {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 4}}
    net = load_causal_lm(write_folder(tmp_path, SHALLOW | dynamic))
    with pytest.raises(ValueError, match=r"at most 4 \(beyond that, its dynamic rope_scaling.*: cut the texts"):
        run(net, *random_batch(1, 5))
    with pytest.raises(InputError, match=r"at most 4 \(beyond that, its dynamic rope_scaling.*: shorten"):
        generate(net, np.ones((1, 3), int), np.ones((1, 3), int), 3)


def test_values_as_transformers_5_writes_them():
    four = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "partial_rotary_factor": 0.25}
    five = {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.25}
    }
    assert DecoderConfig.from_dict(GLM | four) == DecoderConfig.from_dict(GLM | five)


def test_missing_keys_take_the_defaults_of_the_architecture():
    llama, qwen2, glm = (DecoderConfig.from_dict({"model_type": name}) for name in ("llama", "qwen2", "glm"))
    assert (llama.num_key_value_heads, llama.head_dim, llama.vocab_size, llama.qkv_bias) == (32, 128, 32000, False)
    assert (qwen2.num_key_value_heads, qwen2.max_position_embeddings, qwen2.qkv_bias) == (32, 32768, True)
    assert (glm.num_key_value_heads, glm.head_dim, glm.rotated, glm.interleaved, glm.qkv_bias) == (
        2,
        128,
        64,
        True,
        True,
    )


REFUSED = {
    "window": (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        "use_sliding_window is True.*window of 8",
    ),
    "longrope": (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, "'longrope'; supported are default, linear"),
    "dynamic": (LLAMA | {"rope_scaling": {"type": "dynamic"}}, "factor is None; expected is a positive number"),
    "yarn": (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": "32"}}, "beta_fast is '32'"),
    "rounding": (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2, "truncate": 1}}, "truncate is 1; .*true or"),
    "yarn's base": (LLAMA | {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}}, "rope_theta is 1; yarn"),
    "no factor": (LLAMA | {"rope_scaling": {"type": "linear"}}, "factor is None; expected is a positive number"),
    "theta": (LLAMA | {"rope_theta": "1e4"}, "rope_theta is '1e4'"),
    "part of a llama's head": (LLAMA | {"partial_rotary_factor": 0.5}, "3 of 6 elements.*the whole head"),
    "odd head": (LLAMA | {"head_dim": 5}, "5 of 5 elements"),
    "groups": (LLAMA | {"num_key_value_heads": 3}, "num_attention_heads is 4.*num_key_value_heads"),
    "activation": (LLAMA | {"hidden_act": "relu2"}, "hidden_act is 'relu2'.*use a model with"),
    "quantised": (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config"),
    "size": (LLAMA | {"num_attention_heads": 0}, "num_attention_heads is 0"),
    "flag": (LLAMA | {"attention_bias": 1}, "qkv_bias is 1; expected is true or false"),
    "stretched chatglm": (CHATGLM | {"rope_ratio": 50}, "rope_ratio is 50; only 1"),
    "quantised chatglm": (CHATGLM | {"quantization_bit": 4}, "quantization_bit is 4"),
    "first chatglm": (CHATGLM | {"position_encoding_2d": True}, "position_encoding_2d is True"),
    "chatglm with a prefix": (CHATGLM | {"pre_seq_len": 128}, "pre_seq_len is 128"),
    "mistral": (LLAMA | {"model_type": "mistral"}, "model_type is 'mistral'; supported are llama, qwen2, glm, chatglm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configurations_that_are_refused(tmp_path, case):
    config, reason = REFUSED[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=reason) as error:
        DecoderForCausalLM.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("config", [LLAMA, QWEN2, GLM, CHATGLM], ids=lambda config: config["model_type"])
def test_no_value_of_the_wrong_type_gets_further(config):
    optional = ("rope_scaling", "rope_parameters", "partial_rotary_factor", "layer_types", "max_window_layers")
    odd = [None, "x", -1, 0, 1.5, True, [], ["x"], {}, {"rope_type": []}, {"rope_type": "linear", "factor": "2"}]
    odd += [{"rope_type": "yarn", "factor": 1e308, "mscale": []}, {"rope_type": "dynamic", "factor": True}]
    for key in (*config, *optional):
        for value in odd:
            try:
                made = DecoderConfig.from_dict(
                    config | {"use_sliding_window": True, "max_window_layers": 9, key: value}
                )
            except InputError:
                continue
            assert isinstance(made.vocab_size, int)


@pytest.mark.parametrize("name", ["gelu_python", "gelu_fast", "gelu_accurate", "gelu_python_tanh"])
def test_other_names_of_gelu(name):
    assert DecoderConfig.from_dict(LLAMA | {"hidden_act": name}).hidden_act == name
    assert GPT2Config.from_dict({"model_type": "gpt2", "activation_function": name}).activation_function == name
    assert BertConfig.from_dict({"model_type": "bert", "hidden_act": name}).hidden_act == name


def test_windows_that_no_layer_has_are_fine():
    config = QWEN2 | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert DecoderConfig.from_dict(config) == DecoderConfig.from_dict(QWEN2)


CHATGLM_LAYER = "transformer.encoder.layers.0."
TENSORS = {
    "no head": (LLAMA, {"lm_head.weight": None}, "missing: lm_head.weight"),
    "unexpected bias": (
        LLAMA,
        {"model.layers.0.self_attn.q_proj.bias": np.ones(24, np.float32)},
        "not expected: model.layers.0.self_attn.q_proj.bias",
    ),
    "a fused matrix of another height": (
        CHATGLM,
        {f"{CHATGLM_LAYER}self_attention.query_key_value.weight": np.ones((60, 12), np.float32)},
        r"missing: model.layers.0.self_attn.k_proj.weight, .*not expected: .*query_key_value.weight",
    ),
    "a part of chatglm is missing": (
        CHATGLM,
        {f"{CHATGLM_LAYER}mlp.dense_h_to_4h.weight": None},
        "missing: model.layers.0.mlp.gate_up_proj.weight",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit(tmp_path, case):
    config, changes, reason = TENSORS[case]
    tensors = {name: values for name, values in (random_tensors(config) | changes).items() if values is not None}
    with pytest.raises(InputError, match=reason):
        load_causal_lm(write_folder(tmp_path, config, tensors))


def test_tensors_that_are_no_weights(tmp_path):
    inverse = np.ones(3, np.float32)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": inverse, "model.rotary_emb.inv_freq": inverse}
    load_causal_lm(write_folder(tmp_path / "llama", LLAMA, random_tensors(LLAMA) | old))
    old = {"transformer.rotary_pos_emb.inv_freq": inverse}
    load_causal_lm(write_folder(tmp_path / "chatglm", CHATGLM, random_tensors(CHATGLM) | old))
