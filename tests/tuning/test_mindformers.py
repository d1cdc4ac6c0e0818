"""MindFormers' dense layer, by a copy of its interface, and the block pet_config of its YAML files."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from mindpet.tuning.attach import detach, get_peft_model
from mindpet.tuning.config import AdapterConfig, LoraConfig, PrefixConfig, PTuning2Config
from mindpet.tuning.mindformers import read_mindformers_config
from mindpet.tuning.state import require_state
from mindpet.utils.exceptions import InputError


class Linear(nn.Cell):
    """The attributes of MindFormers' layer of this name, and what it computes with them."""

    def __init__(
        self,
        in_channels,
        out_channels,
        has_bias=True,
        activation=None,
        transpose_b=True,
        expert_num=1,
        param_init_type=mstype.float32,
        compute_dtype=mstype.float16,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.expert_num = expert_num
        self.transpose_b = transpose_b
        generator = np.random.default_rng(in_channels * out_channels)
        shape = (out_channels, in_channels) if transpose_b else (in_channels, out_channels)
        self.weight = Parameter(Tensor(generator.normal(size=shape), param_init_type), name="weight")
        self.matmul = ops.MatMul(transpose_b=transpose_b)
        self.bias = None
        self.has_bias = has_bias
        if has_bias:
            self.bias = Parameter(Tensor(generator.normal(size=out_channels), param_init_type), name="bias")
            self.bias_add = ops.Add()
        self.activation = nn.get_activation(activation) if activation else None
        self.activation_flag = activation is not None
        self.dtype = compute_dtype
        self.cast = ops.Cast()

    def construct(self, x):
        shape = x.shape[:-1] + (self.out_channels,)  # noqa: RUF005, graph mode knows only +
        rows = self.cast(x.reshape((-1, self.in_channels)), self.dtype)
        rows = self.matmul(rows, self.cast(self.weight, self.dtype))
        if self.has_bias:
            rows = self.bias_add(rows, self.cast(self.bias, self.dtype))
        if self.activation_flag:
            rows = self.activation(rows)
        return self.cast(rows, x.dtype).reshape(shape)


class Product(nn.Cell):
    """A layer of another library under another name, without dtype and experts."""

    computes_as_dense = True

    def __init__(self):
        super().__init__()
        inner = nn.Dense(4, 6, activation="relu")
        self.in_channels, self.out_channels, self.has_bias = 4, 6, True
        self.weight, self.bias, self.matmul, self.bias_add = inner.weight, inner.bias, inner.matmul, inner.bias_add
        self.activation, self.activation_flag = inner.activation, True

    def construct(self, x):
        return self.activation(self.bias_add(self.matmul(x, self.weight), self.bias))


class _Network(nn.Cell):
    def __init__(self, **arguments):
        super().__init__()
        self.wq = Linear(4, 6, **arguments)
        self.w2 = Linear(6, 4, has_bias=False, transpose_b=False)
        self.norm = nn.LayerNorm((4,))

    def construct(self, x):
        return self.norm(self.w2(self.wq(x)))


def _input():
    return Tensor(np.random.default_rng(0).normal(size=(2, 3, 4)), mstype.float32)


@pytest.mark.parametrize("config", [LoraConfig(r=2, target_modules="all-linear"), AdapterConfig(target_modules=["wq"])])
# ReLU, not GELU: in graph mode MindSpore fuses a float16 product with what follows and rounds once less; ReLU hides it.
@pytest.mark.parametrize("arguments", [{}, {"transpose_b": False, "activation": "relu"}])
def test_a_linear_of_mindformers_starts_exact_and_keeps_its_parameters(config, arguments, mode):
    network = _Network(**arguments)
    before = network(_input()).asnumpy()
    own = {item.name: id(item) for item in network.get_parameters()}
    get_peft_model(network, config)
    np.testing.assert_array_equal(network(_input()).asnumpy(), before)
    assert own.items() <= {item.name: id(item) for item in network.get_parameters()}.items()
    cell = require_state(network).replacements[0].cell
    assert (
        cell.compute_dtype == mstype.float16 and cell.matmul is require_state(network).replacements[0].original.matmul
    )
    detach(network)
    assert type(network.wq) is Linear
    np.testing.assert_array_equal(network(_input()).asnumpy(), before)


def test_lora_acts_on_a_linear_with_an_untransposed_weight(mode):
    network = nn.SequentialCell(Linear(4, 6, transpose_b=False, compute_dtype=mstype.float32))
    before = network(_input()).asnumpy()
    get_peft_model(network, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    cell = network[0]
    cell.mindpet_delta_lora_b.set_data(Tensor(np.ones((6, 2)), mstype.float32))
    branch = 2 * _input().asnumpy() @ cell.mindpet_delta_lora_a.asnumpy().T @ np.ones((2, 6))
    np.testing.assert_allclose(network(_input()).asnumpy(), before + branch, rtol=1e-5, atol=1e-5)
    merged = cell.merged_values()["weight"]
    rows = _input().asnumpy() @ merged + cell.bias.asnumpy()
    np.testing.assert_allclose(rows, before + branch, rtol=1e-5, atol=1e-5)


def test_any_cell_may_say_that_it_computes_as_a_dense_layer(mode):
    network = nn.SequentialCell(Product())
    before = network(_input()[0]).asnumpy()
    get_peft_model(network, LoraConfig(r=2, target_modules="all-linear"))
    np.testing.assert_array_equal(network(_input()[0]).asnumpy(), before)
    assert network[0].activation_flag


def test_experts_are_refused():
    with pytest.raises(InputError, match="wq multiplies for several experts, which no method here can adapt"):
        get_peft_model(_Network(expert_num=2), LoraConfig(target_modules=["wq"]))


# pet_config


def _read(tmp_path, text):
    file = tmp_path / "finetune.yaml"
    file.write_text(text)
    return read_mindformers_config(file)


def test_the_block_of_a_lora_run_is_read(tmp_path):
    config = _read(
        tmp_path,
        """
runner_config: {epochs: 2}
model:
  model_config:
    type: LlamaConfig
    pet_config:
      pet_type: lora
      lora_rank: 16
      lora_alpha: 32
      lora_dropout: 0.05
      target_modules: '.*wq|.*wv'
""",
    )
    assert (config.method, config.r, config.lora_alpha, config.lora_dropout) == ("lora", 16, 32, 0.05)
    network = nn.SequentialCell(_Network())
    get_peft_model(network, config)
    assert [item.path for item in require_state(network).replacements] == ["0.wq"]


@pytest.mark.parametrize(
    ("block", "meant"),
    [
        ("pet_type: ptuning2", PTuning2Config(pre_seq_len=128, projection_dim=128, dropout_prob=0.01)),
        (
            "{pet_type: ptuning2, pre_seq_len: 16, prefix_projection: True, projection_dim: 64, dropout_prob: 0.0}",
            PTuning2Config(pre_seq_len=16, prefix_projection=True, projection_dim=64),
        ),
        ("pet_type: prefixtuning", PrefixConfig(prefix_token_num=128, mid_dim=512, dropout_rate=0.1)),
        (
            "{pet_type: lora, lora_a_init: normal, lora_b_init: zeros, target_modules: wq, freeze_include: ['*'],"
            " freeze_exclude: ['*lora*'], param_init_type: float32}",
            LoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.01, lora_a_init="normal", target_modules=r"(?:.*\.)?(?:wq)[^.]*"
            ),
        ),
    ],
)
def test_what_is_left_out_has_the_default_of_mindformers(tmp_path, block, meant):
    text = block if block.startswith("{") else f"{{{block}}}"
    assert _read(tmp_path, f"model:\n  arch:\n    pet: {{pet_config: {text}}}\n") == meant
    assert _read(tmp_path, f"pet_config: {text}\n") == meant


def test_without_target_modules_mindformers_takes_layers_named_dense_or_linear(tmp_path):
    holder = nn.CellList([_Named()])
    get_peft_model(holder, _read(tmp_path, "pet_config: {pet_type: lora}"))
    assert [item.path for item in require_state(holder).replacements] == ["0.dense", "0.linear_qkv"]


class _Named(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(2, 2)
        self.linear_qkv = nn.Dense(2, 2)
        self.head = nn.Dense(2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {}", "holds no blocks pet_config"),
        ("- pet_config: {pet_type: lora}\n- pet_config: {pet_type: lora}", "holds 2 blocks pet_config"),
        ("pet_config:", "it is None; give a mapping"),
        ("pet_config: [lora]", "give a mapping"),
        ("pet_config: {lora_rank: 8}", "pet_type is None; give one of lora, ptuning2, prefixtuning"),
        ("pet_config: {pet_type: slora}", "pet_type is 'slora'"),
        ("pet_config: {pet_type: lora, lora_ranks: 8}", "lora_ranks is no key of lora; known are lora_rank"),
        ("pet_config: {pet_type: ptuning2, dropout_rate: 0.1}", "known are dropout_prob"),
        ("pet_config: {pet_type: lora, lora_rank: 0}", "lora_rank is 0: .*greater than 0"),
        ("pet_config: {pet_type: lora, lora_rank: '8'}", "lora_rank is '8': .*valid integer"),
        ("pet_config: {pet_type: lora, lora_alpha: .nan}", "lora_alpha is nan"),
        (
            "pet_config: {pet_type: lora, compute_dtype: float16}",
            "compute_dtype is 'float16'.*give it to get_peft_model",
        ),
        ("pet_config: {pet_type: lora, param_init_type: float16}", "that a method adds are float32"),
        ("pet_config: {pet_type: lora, lora_b_init: normal}", "it starts at zeros"),
        ("pet_config: {pet_type: lora, exclude_layers: [head]}", "write target_modules so that it leaves them out"),
        ("pet_config: {pet_type: lora, freeze_exclude: ['*head*']}", "modules_to_save"),
        ("pet_config: {pet_type: lora, target_modules: 3}", "target_modules"),
        ("pet_config: {pet_type: lora, target_modules: '('}", "is no regular expression"),
        ("pet_config: {", "finetune.yaml"),
    ],
)
def test_a_wrong_block_is_an_error_that_names_file_and_key(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as caught:
        _read(tmp_path, text)
    assert "finetune.yaml" in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_mindformers_config(tmp_path / "none.yaml")
