"""GPT-2 against its formula in NumPy and float64, and the folders that it reads or refuses."""

import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn
from safetensors.numpy import save_file

from mindpet import kernels
from mindpet.models._loading import file_name
from mindpet.models.auto import is_causal_lm, load_causal_lm, read_model_type
from mindpet.models.gpt2 import GPT2Config, GPT2LMHeadModel
from mindpet.utils.exceptions import InputError
from tests.models import numpy_language
from tests.models.numpy_language import GPT2, LLAMA, random_batch, random_tensors, write_folder

ONE_LAYER = GPT2 | {"n_layer": 1}
QKV = "transformer.h.1.attn.c_attn.weight"


def run(net, input_ids, attention_mask):
    return net.set_train(False)(Tensor(input_ids), Tensor(attention_mask)).asnumpy()


def check(net, tensors, config, batch, tolerance=1e-4):
    shown = batch[1] > 0
    expected = numpy_language.logits(tensors, config, *batch)
    np.testing.assert_allclose(run(net, *batch)[shown], expected[shown], rtol=0, atol=tolerance)


def test_logits(tmp_path, mode):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, GPT2))
    check(net, random_tensors(GPT2), GPT2, random_batch())
    assert net.features(*map(Tensor, random_batch())).shape == (3, 7, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu", "n_inner": None},
        {"activation_function": "gelu", "layer_norm_epsilon": 0.1},
        {"n_head": 1, "n_embd": 10, "activation_function": "silu", "vocab_size": 41},
        {"tie_word_embeddings": False, "reorder_and_upcast_attn": True},
    ],
)
def test_odd_shapes(tmp_path, changes):
    config = ONE_LAYER | changes
    tensors = random_tensors(config)
    if not config.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = np.random.default_rng(2).normal(size=(37, 12)).astype(np.float32)
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, config, tensors))
    check(net, tensors, config, random_batch(2, 5))


def test_later_tokens_and_padding_change_nothing(tmp_path):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, ONE_LAYER))
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
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, ONE_LAYER), dropout=0.0).set_train()
    batch, tensors = random_batch(), random_tensors(ONE_LAYER)
    targets = np.where(batch[1] > 0, np.roll(batch[0], -1, 1), -1)
    targets[:, -1] = -1

    def expected(name, distance):
        moved = tensors | {name: tensors[name].astype(np.float64) + distance * directions[name]}
        rows = numpy_language.logits(moved, ONE_LAYER, *batch).reshape(-1, 37)
        return numpy_language.formulas.cross_entropy(rows, targets.ravel())

    def loss(input_ids, attention_mask):
        hidden = net.features(input_ids, attention_mask)
        return kernels.cross_entropy(net.logits(hidden).reshape((-1, 37)), Tensor(targets.ravel()))

    names = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_proj.bias", "h.0.ln_1.weight")
    rng = np.random.default_rng(5)
    directions = {name: rng.normal(size=tensors[name].shape) for name in (f"transformer.{one}" for one in names)}
    parameters = {file_name(parameter.name): parameter for parameter in net.trainable_params()}
    assert parameters.keys() == tensors.keys()
    chosen = [parameters[name] for name in directions]
    gradients = mindspore.grad(loss, grad_position=None, weights=chosen)(*map(Tensor, batch))
    for name, gradient in zip(directions, gradients, strict=True):
        slope = (expected(name, 1e-5) - expected(name, -1e-5)) / 2e-5
        direction = directions[name].T if gradient.shape != directions[name].shape else directions[name]
        assert np.vdot(gradient.asnumpy(), direction) == pytest.approx(slope, rel=2e-3, abs=2e-5), name


def test_half_activations(tmp_path):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, ONE_LAYER), compute_dtype=mindspore.float16)
    assert net.features(*map(Tensor, random_batch())).dtype == mindspore.float16
    assert net(*map(Tensor, random_batch())).dtype == mindspore.float32
    check(net, random_tensors(ONE_LAYER), ONE_LAYER, random_batch(), 0.06)


def test_dropouts_act_in_training_only(tmp_path):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, ONE_LAYER), dropout=0.5)
    inputs = tuple(map(Tensor, random_batch()))
    resting = net.set_train(False)(*inputs).asnumpy()
    assert np.abs(net.set_train()(*inputs).asnumpy() - resting).max() > 1e-3


def test_a_sequence_that_is_too_long_is_refused(tmp_path):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, ONE_LAYER))
    with pytest.raises(ValueError, match=r"17 tokens.*at most 16"):
        run(net, *random_batch(1, 17))


def test_paths_and_names_are_those_of_transformers(tmp_path):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, GPT2))
    cells = dict(net.cells_and_names())
    assert isinstance(cells["transformer.h.1.mlp.c_fc"], nn.Dense)
    assert {name.rpartition(".")[0] for name in random_tensors(GPT2)} <= cells.keys()
    assert net.lm_head.weight is net.transformer.wte.embedding_table
    assert {file_name(parameter.name) for parameter in net.get_parameters()} == random_tensors(GPT2).keys()
    attention = cells["transformer.h.0.attn"]
    assert (attention.prefix, attention.num_heads, attention.head_dim) == (None, 3, 4)
    assert (net.config.model_type, net.config.max_position_embeddings, net.config.eos_token_id) == ("gpt2", 16, 36)


def variants():
    tensors = random_tensors(GPT2)
    bare = {name.removeprefix("transformer."): values for name, values in tensors.items()}
    mask = {"h.0.attn.bias": np.ones((1, 1, 16, 16), np.float32), "h.1.attn.masked_bias": np.full((), -1e4, np.float32)}
    head = {"lm_head.weight": tensors["transformer.wte.weight"].copy()}
    return {
        "of a model without its head": bare,
        "of 2019, with constants": bare | mask,
        "with a copy of the embedding as the head": tensors | head,
        "in halves": {name: values.astype(np.float16) for name, values in tensors.items()},
    }


@pytest.mark.parametrize("case", variants())
def test_files_that_load(tmp_path, case):
    net = GPT2LMHeadModel.from_pretrained(write_folder(tmp_path, GPT2, variants()[case]))
    value = net.transformer.h[1].attn.c_attn.weight
    assert value.dtype == mindspore.float32
    np.testing.assert_allclose(value.asnumpy().T, random_tensors(GPT2)[QKV], rtol=1e-3)


def test_a_folder_as_modelscope_lays_it_out(tmp_path):
    folder = write_folder(tmp_path / "AI-ModelScope" / "gpt2", GPT2)
    (folder / "configuration.json").write_text('{"framework": "pytorch", "task": "text-generation"}')
    for name in (".mdl", ".msc", ".mv"):
        (folder / name).write_bytes(b"\x80\x04no part of the model")
    (folder / "generation_config.json").write_text('{"eos_token_id": [36, 35]}')
    net = load_causal_lm(folder, dropout=0.0)
    assert net.config.eos_token_id == (36, 35)
    assert net.config.attn_pdrop == 0.0


TENSORS = {
    "missing": ({QKV: None}, f"missing: {QKV}"),
    "unexpected": ({"transformer.extra": np.ones(2, np.float32)}, "not expected: transformer.extra"),
    "not transposed": ({QKV: np.ones((36, 12), np.float32)}, rf"wrong shape: {QKV} \[12, 36\] instead of \[36, 12\]"),
    "NaN": ({QKV: np.full((12, 36), np.nan, np.float32)}, f"NaN or infinite: {QKV}"),
    "integers": ({QKV: np.ones((12, 36), np.int8)}, f"no floating-point numbers: {QKV}"),
    "a tied head of its own": ({"lm_head.weight": np.ones((37, 12), np.float32)}, "ties the head to the embedding"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit(tmp_path, case):
    changes, reason = TENSORS[case]
    tensors = {name: values for name, values in (random_tensors(GPT2) | changes).items() if values is not None}
    with pytest.raises(InputError, match=reason) as error:
        GPT2LMHeadModel.from_pretrained(write_folder(tmp_path / "model", GPT2, tensors))
    assert str(tmp_path / "model") in str(error.value)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, a pickle.*save the model as safetensors"):
        load_causal_lm(tmp_path)


CONFIGS = {
    "scores by layer": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    "unscaled scores": ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention is True"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config is"),
    "activation": ({"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'.*built here, gelu,"),
    "heads": ({"n_head": 5}, "n_embd is 12.*n_head"),
    "size": ({"n_layer": "2"}, "n_layer is '2'; expected is a positive integer"),
    "dropout": ({"attn_pdrop": 1.0}, "attn_pdrop is 1.0"),
    "end": ({"eos_token_id": "36"}, "eos_token_id is '36'"),
    "bert": ({"model_type": "bert"}, "model_type is 'bert'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(tmp_path, case):
    changes, reason = CONFIGS[case]
    folder = write_folder(tmp_path, GPT2 | changes, random_tensors(GPT2))
    with pytest.raises(InputError, match=reason) as error:
        GPT2LMHeadModel.from_pretrained(folder)
    assert str(tmp_path / "config.json") in str(error.value)


def test_other_names_of_the_fields():
    config = GPT2Config.from_dict({"model_type": "gpt2", "hidden_size": 24, "num_hidden_layers": 3, "n_head": 2})
    assert (config.n_embd, config.n_layer, config.n_head, config.vocab_size) == (24, 3, 2, 50257)


@pytest.mark.parametrize(("model_type", "known"), [("gpt2", True), ("llama", True), ("bert", False), (None, False)])
def test_folders_of_language_models(tmp_path, model_type, known):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert read_model_type(tmp_path) == model_type
    assert is_causal_lm(tmp_path) is known
    if not known:
        with pytest.raises(InputError, match=r"model_type is .*gpt2, llama, qwen2, glm, chatglm"):
            load_causal_lm(tmp_path)


def test_damaged_files(tmp_path):
    folder = write_folder(tmp_path, LLAMA)
    (folder / "generation_config.json").write_text('{"eos_token_id": -1}')
    with pytest.raises(InputError, match=r"generation_config.json.*eos_token_id is -1"):
        load_causal_lm(folder)
    (folder / "generation_config.json").unlink()
    save_file({"x": np.ones(1, np.float32)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model.safetensors does not fit.*missing: .* and \d+ more"):
        load_causal_lm(folder)
