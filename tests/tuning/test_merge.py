"""Merging, unmerging and unloading: numbers, bits, refusals, and networks that have run, trained and been wrapped."""

import copy

import mindspore
import ml_dtypes
import numpy as np
import pytest
from mindspore import Model, Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from safetensors.numpy import save_file

import mindpet
from mindpet import BitFitConfig, IA3Config, LoraConfig
from mindpet.delta import LoRADense
from mindpet.models.bert import BertForSequenceClassification
from mindpet.tuning.merge_report import TOLERANCES
from mindpet.tuning.state import adapter_parameters
from mindpet.utils.exceptions import InputError
from tests.tiny import write_bert

INPUTS, WIDE, OUTPUTS = 6, 8, 4
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
X = np.random.default_rng(5).normal(size=(3, INPUTS)).astype(np.float32)
LABELS = np.array([0, 2, 3], np.int32)


class Tiny(nn.Cell):
    def __init__(self):
        super().__init__()
        self.query = nn.Dense(INPUTS, WIDE, activation="tanh")
        self.value = nn.Dense(WIDE, WIDE, has_bias=False)
        self.head = nn.Dense(WIDE, OUTPUTS)

    def construct(self, x):
        return self.head(self.value(self.query(x)))


METHODS = {
    "lora": LoraConfig(r=2, lora_alpha=3, target_modules=["query", "value"]),
    "ia3": IA3Config(target_modules=["query", "value"], feedforward_modules=["value"]),
}


def randomise(parameters, spread=0.5, seed=0):
    generator = np.random.default_rng(seed)
    for parameter in parameters:
        values = (spread * generator.normal(size=parameter.shape)).astype(np.float32)
        parameter.set_data(Tensor(values).astype(parameter.dtype))


def make(config=METHODS["lora"], dtype="float32", spread=0.3):
    """Return a network with random weights and a random adapter, not in training."""
    network = Tiny()
    randomise(network.get_parameters())
    for parameter in network.get_parameters():
        parameter.set_dtype(getattr(mstype, dtype))
    mindpet.get_peft_model(network, config)
    randomise([one for one in network.trainable_params() if "mindpet_delta" in one.name], spread, seed=1)
    return network.set_train(False)


def bits(network):
    """Every parameter's bytes, by name."""
    return {parameter.name: parameter.asnumpy().tobytes() for parameter in network.get_parameters()}


def run(network, x=X):
    return network(Tensor(x)).asnumpy()


def test_the_names_are_public():
    assert {"merge", "unmerge", "unload"} <= set(mindpet.__all__)


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_a_network_that_has_run_gives_the_same_numbers_merged_and_unmerged(mode, config):
    network = make(config)
    attached, before = run(network), bits(network)
    plain = run(mindpet.unload(make(config)))
    assert np.abs(attached - plain).max() > 0.1
    report = mindpet.merge(network)
    np.testing.assert_allclose(run(network), attached, rtol=1e-5, atol=1e-5)
    assert [cell.path for cell in report.cells] == ["query", "value"]
    assert {name for name, now in bits(network).items() if now != before[name]} >= {"query.weight", "value.weight"}
    mindpet.unmerge(network)
    assert bits(network) == before
    assert np.array_equal(run(network), attached)


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_merged_weight_is_the_float32_sum_rounded_once(config, dtype):
    network = make(config, dtype)
    base = {name: parameter.asnumpy().astype(np.float32) for name, parameter in network.parameters_dict().items()}
    query = next(cell for path, cell in network.cells_and_names() if path == "query")
    if isinstance(query, LoRADense):
        product = base["query.mindpet_delta_lora_b"] @ base["query.mindpet_delta_lora_a"]
        expected = base["query.weight"] + np.float32(1.5) * product
    else:
        expected = base["query.weight"] * base["query.mindpet_delta_ia3_scale"][:, None]
    mindpet.merge(network)
    assert network.query.weight.dtype == getattr(mstype, dtype)
    ulp = 2.0**-7 if dtype == "bfloat16" else 2.0**-10 if dtype == "float16" else 1e-6
    np.testing.assert_allclose(network.query.weight.asnumpy().astype(np.float32), expected, rtol=ulp, atol=1e-6)


def _cycle(dtype, cycles):
    network = make(dtype=dtype)
    before = bits(network)
    for _ in range(cycles):
        mindpet.merge(network)
        merged = bits(network)
        mindpet.unmerge(network)
    assert bits(network) == before
    assert merged["query.weight"] != before["query.weight"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cycles_leave_every_bit(dtype):
    _cycle(dtype, 3)


@pytest.mark.slow
@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_cycles_leave_every_bit(dtype, monkeypatch):
    """Without the search for captured functions, which goes through all objects of the process each time."""
    monkeypatch.setattr("mindpet.tuning.merge.refuse_captured", lambda: None)
    _cycle(dtype, 1000)


class Loss(nn.Cell):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.loss = nn.CrossEntropyLoss()

    def construct(self, x, labels):
        return self.loss(self.network(x), labels)


def test_what_was_wrapped_before_sees_each_change(mode):
    """A Model, a cell around the network and a jitted function, all used before the first change."""
    network = make()
    model, around = Model(network), nn.SequentialCell(network, nn.Softmax())

    @mindspore.jit
    def jitted(x):
        return network(x)

    def outputs():
        x = Tensor(X)
        return [model.predict(x).asnumpy(), around(x).asnumpy(), jitted(x).asnumpy()]

    attached = outputs()
    weight = network.query.weight.asnumpy().copy()
    mindpet.merge(network)
    for now, then in zip(outputs(), attached, strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-5)
    network.query.mindpet_delta_lora_b.set_data(Tensor(np.full((WIDE, 2), 9, np.float32)))
    for now, then in zip(outputs(), attached, strict=True):  # the branch is off
        np.testing.assert_allclose(now, then, rtol=1e-5, atol=1e-5)
    mindpet.unmerge(network)
    assert np.array_equal(network.query.weight.asnumpy(), weight)
    for now, then in zip(outputs(), attached, strict=True):  # and on again
        assert np.abs(now - then).max() > 1e-2
    mindpet.unload(network)
    plain = run(network)
    assert np.array_equal(outputs()[0], plain)
    np.testing.assert_allclose(outputs()[2], plain, rtol=1e-6)
    fresh = make()
    mindpet.unload(fresh)
    assert np.array_equal(run(fresh), plain)


def test_a_function_captured_as_bytecode_is_no_silent_loser():
    """It would keep the old values; MindSpore makes such functions in no other way."""
    network = make()

    @mindspore.jit(capture_mode="bytecode")
    def captured(x):
        return network(x)

    captured(Tensor(X))
    before = bits(network)
    with pytest.raises(InputError, match=r"captured was made by ms\.jit"):
        mindpet.merge(network)
    assert bits(network) == before
    del captured
    mindpet.merge(network)
    mindpet.unmerge(network)


def test_values_that_are_loaded_reach_a_jitted_function(mode, tmp_path):
    """From 2.8 on MindSpore takes the values of a network in a closure as constants."""
    network, other = make(), make(spread=0.6)
    mindpet.save_adapter(other, tmp_path / "other")

    @mindspore.jit
    def jitted(x):
        return network(x)

    before = jitted(Tensor(X)).asnumpy()
    mindpet.load_adapter(network, tmp_path / "other")
    np.testing.assert_allclose(jitted(Tensor(X)).asnumpy(), run(other), rtol=1e-5, atol=1e-5)
    assert np.abs(before - run(other)).max() > 0.1


def test_a_merged_adapter_cannot_be_trained_until_it_is_unmerged(mode):
    network = make()
    step = nn.TrainOneStepCell(Loss(network), nn.Adam(network.trainable_params(), 0.05)).set_train()
    x, labels = Tensor(X), Tensor(LABELS)
    losses = [float(step(x, labels).asnumpy()) for _ in range(3)]
    mindpet.merge(network)
    before = bits(network)
    with pytest.raises(ValueError, match=r"mindpet\.unmerge"):
        step(x, labels).asnumpy()
    assert bits(network) == before
    network.set_train(False)
    run(network)
    mindpet.unmerge(network)
    step.set_train()
    assert float(step(x, labels).asnumpy()) < losses[0]
    adapter = network.query.mindpet_delta_lora_b.asnumpy()
    mindpet.merge(network)
    assert np.array_equal(network.query.mindpet_delta_lora_b.asnumpy(), adapter)


def test_the_report_counts_what_rounding_does():
    """Changes of every size beside weights near 1, where bfloat16 counts in 2^-7."""
    network = make(dtype="bfloat16")
    for cell in (network.query, network.value):
        cell.weight.set_data(Tensor(np.ones(cell.weight.shape, DTYPES["bfloat16"])))
        sizes = np.geomspace(1e-4, 1e-1, cell.in_channels).astype(np.float32)
        cell.mindpet_delta_lora_a.set_data(Tensor(np.stack((sizes, np.zeros_like(sizes)))))
        cell.mindpet_delta_lora_b.set_data(Tensor(np.ones((WIDE, 2), np.float32)))
    expected = []
    for cell in (network.query, network.value):
        change = 1.5 * cell.mindpet_delta_lora_a.asnumpy()[0]
        expected.append((WIDE * len(change), WIDE * int((change < 2.0**-8).sum())))
    report = mindpet.merge(network)
    assert [(cell.changed, cell.swallowed) for cell in report.cells] == expected
    assert report.swallowed == sum(lost for _, lost in expected) / sum(all for all, _ in expected)
    assert 0.3 < report.swallowed < 0.9
    assert 1e-4 < report.relative < TOLERANCES["bfloat16"]
    assert report.kept_bytes == 2 * WIDE * (INPUTS + WIDE)
    assert f"{report.swallowed:.2%}" in str(report)
    assert "2 layers merged into bfloat16 weights" in str(report)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_difference_is_that_of_the_weights(dtype):
    """One input and one output: the probe can only scale the weight's own error."""
    network = nn.SequentialCell(nn.Dense(1, 1, has_bias=False))
    mindpet.get_peft_model(network, LoraConfig(r=1, lora_alpha=1, target_modules=["0"]))
    cell = network[0]
    cell.weight.set_data(Tensor([[1.0]], mstype.float32))
    cell.weight.set_dtype(getattr(mstype, dtype))
    cell.mindpet_delta_lora_a.set_data(Tensor([[1 / 3]], mstype.float32))
    cell.mindpet_delta_lora_b.set_data(Tensor([[1.0]], mstype.float32))
    exact = 1 + np.float64(np.float32(1 / 3))
    error = abs(float(exact.astype(DTYPES[dtype])) - float(exact)) / float(exact)
    report = mindpet.merge(network)
    assert report.relative == pytest.approx(error, rel=1e-6)
    assert report.cells[0].dtype == dtype


def test_above_the_tolerance_nothing_changes_and_the_dtype_that_would_pass_is_named():
    network = make(dtype="float16")
    before = bits(network)
    with pytest.raises(
        InputError, match=r"(query|value) into float16 .*2 of 2 layers.*cast the base to float32, which"
    ):
        mindpet.merge(network, tolerance=1e-5)
    with pytest.raises(InputError, match=r"accepted is 0\.0e\+00.*no dtype would pass"):
        mindpet.merge(make(dtype="bfloat16"), tolerance=0)
    assert bits(network) == before
    assert np.isfinite(run(network.set_train(), X.astype(np.float16))).all()
    assert mindpet.merge(network.set_train(False), tolerance=1e-2).relative > 1e-5


def test_a_weight_that_the_dtype_cannot_hold_is_refused_by_default():
    network = make(dtype="float16")
    network.value.mindpet_delta_lora_b.set_data(Tensor(np.full((WIDE, 2), 1e6, np.float32)))
    before = bits(network)
    with pytest.raises(InputError, match=r"value into float16 .*1 of 2 layers.*float32 or bfloat16"):
        mindpet.merge(network)
    assert bits(network) == before


def test_nan_is_refused_by_name_before_anything_is_written():
    network = make()
    network.value.mindpet_delta_lora_a.set_data(Tensor(np.full((2, WIDE), np.nan, np.float32)))
    before = bits(network)
    with pytest.raises(InputError, match="merging value would write NaN"):
        mindpet.merge(network)
    assert bits(network) == before


def test_what_fails_half_way_is_taken_back(monkeypatch):
    network, calls = make(), []
    before, write = bits(network), Parameter.copy_

    def fails_once(self, *arguments):
        calls.append(self.name)
        if len(calls) == 3:
            raise MemoryError
        return write(self, *arguments)

    monkeypatch.setattr(Parameter, "copy_", fails_once)
    with pytest.raises(MemoryError):
        mindpet.merge(network)
    assert bits(network) == before
    assert calls[:2] == ["query.weight", "value.weight"]
    mindpet.merge(network)
    mindpet.unmerge(network)
    assert bits(network) == before


def test_merging_twice_or_unmerging_what_is_not_merged_is_refused():
    network = make()
    with pytest.raises(InputError, match="not merged"):
        mindpet.unmerge(network)
    mindpet.merge(network)
    merged = bits(network)
    with pytest.raises(InputError, match="merged already"):
        mindpet.merge(network)
    assert bits(network) == merged
    for change in (mindpet.merge, mindpet.unmerge, mindpet.unload):
        with pytest.raises(InputError, match="nothing is attached"):
            change(Tiny())


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("adapter", mindpet.AdapterConfig(bottleneck_size=2, target_modules=["value"])),
        ("low_rank_adapter", mindpet.LowRankAdapterConfig(reduction_factor=2, target_modules=["value"])),
    ],
)
def test_methods_that_are_no_change_of_weights_refuse_by_name(method, config):
    network = make([LoraConfig(r=2, target_modules=["query"]), config])
    before = bits(network)
    with pytest.raises(InputError, match=f"{method} at value cannot be merged"):
        mindpet.merge(network)
    assert bits(network) == before


@pytest.mark.parametrize(
    "config", [mindpet.PrefixConfig(num_virtual_tokens=2), mindpet.PTuning2Config(num_virtual_tokens=2)]
)
def test_prefixes_refuse_by_name_and_are_taken_off_again(tmp_path, config):
    network = BertForSequenceClassification.from_pretrained(write_bert(tmp_path), num_labels=2).set_train(False)
    texts = [
        Tensor(np.array([[2, 5, 9, 3]], np.int32)),
        Tensor(np.ones((1, 4), np.int32)),
        Tensor(np.zeros((1, 4), np.int32)),
    ]
    plain, before = network(*texts).asnumpy(), bits(network)
    mindpet.get_peft_model(network, [config, LoraConfig(r=2)])
    assert np.abs(network(*texts).asnumpy() - plain).max() > 1e-5
    attached = bits(network)
    with pytest.raises(InputError, match=f"{config.method} at bert.*self cannot be merged"):
        mindpet.merge(network)
    assert bits(network) == attached
    mindpet.unload(network)
    assert bits(network) == before
    assert np.array_equal(network(*texts).asnumpy(), plain)


def test_a_bert_is_unmerged_from_its_folder(tmp_path):
    folder = write_bert(tmp_path)
    network = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    mindpet.get_peft_model(network, LoraConfig(r=2, modules_to_save=["classifier"]))
    randomise(network.trainable_params())
    before = bits(network)
    assert [cell.path for cell in mindpet.merge(network, keep_base=False).cells] == [
        f"bert.encoder.layer.0.attention.self.{name}" for name in ("query", "value")
    ]
    mindpet.unmerge(network, base=folder)
    assert bits(network) == before


class Seeing(nn.Cell):
    """An embedding and a convolution of it, as over one-dimensional pictures."""

    def __init__(self, group=1):
        super().__init__()
        self.words = nn.Embedding(7, 5)
        self.conv = nn.Conv2d(2, 4, (1, 3), pad_mode="same", group=group, has_bias=True)

    def construct(self, ids):
        return self.conv(self.words(ids))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_and_convolutions_merge(mode, dtype):
    network = Seeing()
    randomise(network.get_parameters())
    for parameter in network.get_parameters():
        parameter.set_dtype(getattr(mstype, dtype))
    mindpet.get_peft_model(network, LoraConfig(r=2, target_modules=["words", "conv"])).set_train(False)
    randomise(network.trainable_params(), seed=1)
    before, ids = bits(network), np.array([[[1, 2, 6], [0, 2, 2]]], np.int32)
    attached = run(network, ids)
    report = mindpet.merge(network)
    assert [cell.path for cell in report.cells] == ["words", "conv"]
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(run(network, ids), attached, rtol=tolerance, atol=tolerance)
    mindpet.unmerge(network)
    assert bits(network) == before
    assert np.array_equal(run(network, ids), attached)
    mindpet.merge(network)
    mindpet.unload(network)
    assert [type(cell) for cell in (network.words, network.conv)] == [nn.Embedding, nn.Conv2d]
    np.testing.assert_allclose(run(network, ids), attached, rtol=tolerance, atol=tolerance)


def test_a_convolution_of_several_groups_refuses_by_name():
    network = mindpet.get_peft_model(Seeing(2), LoraConfig(r=2, target_modules=["words", "conv"]))
    before = bits(network)
    with pytest.raises(InputError, match="conv: a convolution of 2 groups cannot be merged"):
        mindpet.merge(network)
    assert bits(network) == before


def test_a_weight_that_another_cell_uses_is_refused():
    class Tied(nn.Cell):
        def __init__(self):
            super().__init__()
            self.first = nn.Dense(INPUTS, INPUTS)
            self.second = nn.Dense(INPUTS, INPUTS, has_bias=False)
            self.second.weight = self.first.weight

        def construct(self, x):
            return self.second(self.first(x))

    network = mindpet.get_peft_model(Tied(), LoraConfig(r=2, target_modules=["first"]))
    randomise(network.trainable_params())
    before = bits(network)
    with pytest.raises(InputError, match="of first is used by second too"):
        mindpet.merge(network)
    assert bits(network) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tolerance": "1e-3"}, TypeError),
        ({"tolerance": True}, TypeError),
        ({"tolerance": -1.0}, InputError),
        ({"tolerance": float("nan")}, InputError),
        ({"tolerance": float("inf")}, InputError),
        ({"keep_base": 1}, TypeError),
    ],
)
def test_wrong_arguments_are_refused(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        mindpet.merge(make(), **arguments)


def _write_base(folder, network, **changed):
    folder.mkdir()
    tensors = {
        f"model.{name}".replace("query", "q_proj"): parameter.asnumpy().astype(np.float32)
        for name, parameter in network.parameters_dict().items()
        if "mindpet" not in name
    }
    save_file(tensors | changed, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_kept_is_read_again_from_a_folder(tmp_path, dtype):
    network = make(dtype=dtype)
    folder, before = _write_base(tmp_path / "base", network), bits(network)
    assert mindpet.merge(network, keep_base=False).kept_bytes == 0
    merged = bits(network)
    with pytest.raises(InputError, match=r"query\.weight and 1 other.*merging is final"):
        mindpet.unmerge(network)
    wrong = _write_base(tmp_path / "wrong", network)
    with pytest.raises(InputError, match=r"no tensor .*query\.weight"):
        mindpet.unmerge(network, base=wrong)
    with pytest.raises(InputError, match="missing"):
        mindpet.unmerge(network, base=tmp_path / "missing")
    assert bits(network) == merged
    mindpet.unmerge(network, base=str(folder))
    assert bits(network) == before


def test_one_changed_bit_of_the_base_is_noticed(tmp_path):
    network = make()
    weight = network.value.weight.asnumpy().copy()
    weight[0, 0] = np.nextafter(weight[0, 0], np.float32(9))
    folder = _write_base(tmp_path / "base", network, **{"model.value.weight": weight})
    mindpet.merge(network, keep_base=False)
    merged = bits(network)
    with pytest.raises(InputError, match=r"value\.weight"):
        mindpet.unmerge(network, base=folder)
    assert bits(network) == merged


def test_a_dense_weight_may_be_stored_transposed(tmp_path):
    network = make()
    before = bits(network)
    stored = {"a": network.query.weight.asnumpy().T.copy(), "b": network.value.weight.asnumpy().T.copy()}
    save_file(stored, tmp_path / "model.safetensors")
    mindpet.merge(network, keep_base=False)
    mindpet.unmerge(network, base=tmp_path)
    assert bits(network) == before


def test_a_client_s_transposed_layer_merges_in_its_own_layout():
    network = Tiny()
    network.query.matmul = ops.MatMul(transpose_b=False)
    network.query.weight = Parameter(Tensor(X[:1].T * np.ones((1, WIDE), np.float32)), name="query.weight")
    mindpet.get_peft_model(network, METHODS["lora"])
    randomise(network.trainable_params())
    attached = run(network)
    mindpet.merge(network)
    np.testing.assert_allclose(run(network), attached, rtol=1e-5, atol=1e-5)


def test_unload_gives_back_the_network_from_before():
    network = Tiny()
    before = bits(network)
    cells = {path: cell for path, cell in network.cells_and_names() if path}
    parameters = list(network.get_parameters())
    network.query.weight.requires_grad = False
    config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["head"])
    mindpet.get_peft_model(network, [config, BitFitConfig(target_modules=["query"])])
    randomise(network.trainable_params())
    assert bits(network).keys() > before.keys()
    assert mindpet.unload(network) is network
    assert {path: cell for path, cell in network.cells_and_names() if path} == cells
    assert [id(parameter) for parameter in network.get_parameters()] == [id(parameter) for parameter in parameters]
    assert bits(network) == before
    trainable = {parameter.name for parameter in network.trainable_params()}
    assert trainable == before.keys() - {"query.weight"}
    with pytest.raises(InputError, match="nothing is attached"):
        mindpet.unload(network)
    mindpet.get_peft_model(network, config)


def test_unload_after_merge_keeps_what_was_learnt(mode):
    network = Tiny()
    run(network)
    weight = network.query.weight
    config = LoraConfig(r=2, target_modules=["query", "value"], modules_to_save=["head"])
    mindpet.get_peft_model(network, [config, BitFitConfig()])
    randomise(network.trainable_params())
    attached = run(network)
    report = mindpet.merge(network)
    assert [cell.method for cell in report.cells] == ["lora", "lora"]
    mindpet.unload(network)
    assert type(network.query) is nn.Dense
    assert network.query.weight is weight
    np.testing.assert_allclose(run(network), attached, rtol=1e-5, atol=1e-5)
    assert not any("mindpet" in parameter.name for parameter in network.get_parameters())


def test_bitfit_alone_is_in_the_network_already():
    network = make(BitFitConfig())
    randomise(network.trainable_params(), seed=3)
    trained = bits(network)
    report = mindpet.merge(network)
    assert report.cells == ()
    assert "the network's own parameters" in str(report)
    mindpet.unload(network)
    assert bits(network) == trained


def test_a_merged_network_has_nothing_to_train_until_it_is_unmerged():
    network = make([LoraConfig(r=2, target_modules=["query"]), BitFitConfig()])
    trained = {parameter.name for parameter in network.trainable_params()}
    mindpet.merge(network.set_train(False))
    assert not network.trainable_params()
    mindpet.unmerge(network)
    assert {parameter.name for parameter in network.trainable_params()} == trained


def test_unload_keeps_the_training_flag():
    network = make().set_train()
    mindpet.unload(network)
    assert network.query.training
    network = make().set_train(False)
    mindpet.unload(network)
    assert not network.query.training


@pytest.mark.parametrize("finish", [mindpet.merge, mindpet.unload])
@pytest.mark.parametrize(
    "change", [lambda cells: cells.insert(0, nn.ReLU()), lambda cells: cells.__setitem__(1, nn.ReLU())]
)
def test_a_layer_that_was_moved_is_not_overwritten(change, finish):
    network = nn.CellList([nn.Dense(3, 3), nn.Dense(3, 3)])
    mindpet.get_peft_model(network, LoraConfig(r=2, target_modules="all-linear"))
    change(network)
    before = list(network)
    with pytest.raises(InputError, match="has been moved or replaced since it was attached"):
        finish(network)
    assert all(one is other for one, other in zip(network, before, strict=True))


def test_unload_is_refused_while_an_optimizer_lives():
    network = make()
    optimizer = nn.Adam(network.trainable_params(), 0.05)
    before = bits(network)
    with pytest.raises(InputError, match="optimizer"):
        mindpet.unload(network)
    assert bits(network) == before
    del optimizer
    mindpet.unload(network)


def test_a_copy_of_a_merged_network_is_on_its_own():
    network = make()
    before = bits(network)
    mindpet.merge(network)
    merged = bits(network)
    twin = copy.deepcopy(network)
    mindpet.unmerge(twin)
    assert bits(twin) == before
    assert bits(network) == merged
    mindpet.unmerge(network)
    assert bits(network) == before


def test_attached_values_stay_trained_values_that_a_folder_cannot_have(tmp_path):
    """IA3 merges into a bias that BitFit trains: its value is kept whatever keep_base says."""
    network = make([IA3Config(target_modules=["query"]), BitFitConfig()])
    folder = _write_base(tmp_path / "base", network)
    randomise([network.query.bias], seed=7)
    before = bits(network)
    assert mindpet.merge(network, keep_base=False).kept_bytes == 4 * WIDE
    mindpet.unmerge(network, base=folder)
    assert bits(network) == before


def test_a_wrapper_that_renames_parameters_loses_nothing():
    network = Tiny()
    before = bits(network)
    mindpet.get_peft_model(network, LoraConfig(r=2, target_modules=["query"], modules_to_save=["head"]))
    held = adapter_parameters(network)
    Loss(network)
    assert network.head.weight.name == "network.head.weight"
    assert adapter_parameters(network) == held
    randomise(network.trainable_params())
    mindpet.merge(network)
    mindpet.unmerge(network)
    mindpet.unload(network)
    assert {name.removeprefix("network."): value for name, value in bits(network).items()} == before
    assert all(parameter.requires_grad for parameter in network.get_parameters())
