from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, mint, nn
from mindspore.train import Model

import mindpet
from mindpet.tuning.merge import merge, unload, unmerge
from mindpet.tuning.registry import METHODS
from mindpet.tuning.state import adapter_parameters
from mindpet.utils.exceptions import InputError
from tests.methods import EVERY_METHOD, config_of, small_bert
from tests.tuning.exchange.networks import Stack, adapter_values, fill, lora, outputs, snapshot, trained


@EVERY_METHOD
def test_every_method_comes_back_bit_for_bit(tmp_path, method):
    before = trained(small_bert(), config_of(method, modules_to_save=["classifier"]))
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = small_bert()
    report = mindpet.load_adapter(after, tmp_path / "adapter")
    assert adapter_values(after) == adapter_values(before)
    np.testing.assert_array_equal(outputs(after), outputs(before))
    assert report.methods == (method,)
    assert report.attached and report.is_verified and report.has_effect
    assert report.outcome.difference == 0
    assert report.outcome.ran_network
    assert report.rounded_to == ()
    trainable = [parameter.name for parameter in after.trainable_params()]
    assert trainable == [parameter.name for parameter in before.trainable_params()]


@pytest.mark.slow
@EVERY_METHOD
def test_every_method_comes_back_into_compiled_networks(tmp_path, method):
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    before = trained(small_bert(), config_of(method, modules_to_save=["classifier"]))
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = small_bert()
    plain = outputs(after)
    mindpet.load_adapter(after, tmp_path / "adapter")
    np.testing.assert_array_equal(outputs(after), outputs(before))
    assert not np.array_equal(outputs(after), plain)
    fill(after, seed=5)
    assert not np.array_equal(outputs(after), outputs(before))
    mindpet.load_adapter(after, tmp_path / "adapter")
    np.testing.assert_array_equal(outputs(after), outputs(before))


VARIANTS = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "patterns": {"rank_pattern": {"first": 3}, "alpha_pattern": {"second": 5}, "bias": "all"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora_comes_back(tmp_path, variant):
    network = mindpet.get_peft_model(Stack(), lora(**VARIANTS[variant], modules_to_save=[]))
    mindpet.save_adapter(network, tmp_path / "untrained")
    assert not mindpet.load_adapter(Stack(), tmp_path / "untrained").has_effect
    mindpet.save_adapter(fill(network), tmp_path / "trained")
    after = Stack()
    assert mindpet.load_adapter(after, tmp_path / "trained").has_effect
    assert adapter_values(after) == adapter_values(network)
    np.testing.assert_array_equal(outputs(after), outputs(network))


def test_a_cell_around_the_network_that_renames_parameters_changes_no_file(tmp_path):
    mindpet.save_adapter(trained(Stack(), lora()), tmp_path / "before")
    network = trained(Stack(), lora())
    around = Around(network, renames=True)
    assert network.first.weight.name == "network.first.weight"
    mindpet.save_adapter(network, tmp_path / "after")
    for path in (tmp_path / "before").iterdir():
        assert path.read_bytes() == (tmp_path / "after" / path.name).read_bytes()
    fill(network, seed=3)
    assert mindpet.load_adapter(around.network, tmp_path / "before").outcome.difference == 0


def test_a_merged_adapter_is_neither_saved_nor_loaded(tmp_path):
    network = trained(Stack(), lora())
    mindpet.save_adapter(network, tmp_path / "adapter")
    merge(network)
    before = snapshot(network)
    refusal = r"is merged into the base weights; call mindpet\.unmerge before"
    with pytest.raises(InputError, match=refusal):
        mindpet.save_adapter(network, tmp_path / "merged")
    with pytest.raises(InputError, match=refusal):
        mindpet.load_adapter(network, tmp_path / "adapter")
    assert snapshot(network) == before
    unmerge(network)
    assert mindpet.load_adapter(network, tmp_path / "adapter").outcome.difference == 0
    unload(network)
    assert mindpet.load_adapter(network, tmp_path / "adapter").attached


def test_methods_are_combined_in_one_folder(tmp_path):
    configs = [lora(target_modules=["first"]), mindpet.AdapterConfig(bottleneck_size=2, target_modules=["second"])]
    configs.append(mindpet.BitFitConfig())
    before = trained(Stack(), configs)
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = Stack()
    report = mindpet.load_adapter(after, tmp_path / "adapter")
    assert report.methods == ("lora", "adapter", "bitfit")
    assert adapter_values(after) == adapter_values(before)
    np.testing.assert_array_equal(outputs(after), outputs(before))


class Around(nn.Cell):
    """A cell around a network, as for a loss."""

    def __init__(self, network, renames=False):
        super().__init__(auto_prefix=renames)
        self.network = network

    def construct(self, x):
        return self.network(x)


@pytest.mark.parametrize("is_attached", [True, False])
def test_whatever_was_compiled_gives_the_loaded_results(tmp_path, mode, is_attached):
    before = trained(Stack(), lora())
    mindpet.save_adapter(before, tmp_path / "adapter")
    x = Tensor(np.random.RandomState(3).normal(size=(4, 6)), mindspore.float32)
    expected = outputs(before)
    after = trained(Stack(), lora(), seed=2) if is_attached else Stack()
    after.set_train(False)
    callers = [after, Around(after), Model(after).predict, mindspore.jit(Around(after).construct)]

    @mindspore.jit
    def function(x):
        return after(x)

    callers.append(function)
    for call in callers:
        assert not np.allclose(call(x).asnumpy(), expected)
    mindpet.load_adapter(after, tmp_path / "adapter")
    for call in callers:
        np.testing.assert_allclose(call(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_training_step_goes_on_with_the_loaded_values(tmp_path, mode):
    before = trained(Stack(), lora())
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = trained(Stack(), lora(), seed=2)
    x, y = (Tensor(np.ones((4, size)), mindspore.float32) for size in (6, 3))
    losses = []
    for network in (before, after):
        step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.MSELoss()), nn.SGD(network.trainable_params(), 0.0))
        step.set_train()
        losses.append([float(step(x, y).asnumpy())])
        mindpet.load_adapter(network, tmp_path / "adapter")
        losses[-1].append(float(step(x, y).asnumpy()))
        del step
    assert losses[1][0] != losses[0][0]
    assert losses[0][0] == losses[0][1] == losses[1][1]


def test_the_file_of_tensors_alone_is_enough(tmp_path):
    before = trained(Stack(), lora())
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = Stack()
    report = mindpet.load_adapter(after, tmp_path / "adapter" / "adapter_model.safetensors")
    assert report.is_verified
    assert adapter_values(after) == adapter_values(before)


def test_training_settings_may_differ_from_the_saved_ones(tmp_path):
    before = trained(Stack(), lora())
    mindpet.save_adapter(before, tmp_path / "adapter")
    after = mindpet.get_peft_model(Stack(), lora(lora_dropout=0.5, target_modules=".*(first|second)"))
    mindpet.load_adapter(after, tmp_path / "adapter")
    assert adapter_values(after) == adapter_values(before)
    assert after.first.lora_dropout.p == 0.5


@pytest.mark.parametrize("mode_before", [mindspore.GRAPH_MODE, mindspore.PYNATIVE_MODE])
def test_saving_and_loading_leave_no_trace(tmp_path, mode_before):
    mindspore.set_context(mode=mode_before)
    network = trained(small_bert(), config_of("lora", modules_to_save=["classifier"]))
    network.set_train()
    network.bert.encoder.layer[0].attention.set_train(False)
    plain = small_bert()

    def traces(net):
        flags = {path: cell.training for path, cell in net.cells_and_names()}
        random = (np.random.get_state()[1].tobytes(), mindspore.get_rng_state().asnumpy().tobytes())
        return flags, random, mindspore.get_context("mode")

    before = traces(network)
    mindpet.save_adapter(network, tmp_path / "adapter")
    mindpet.load_adapter(network, tmp_path / "adapter")
    assert traces(network) == before
    random, mode = traces(plain)[1:]
    mindpet.load_adapter(plain, tmp_path / "adapter")
    assert traces(plain)[1:] == (random, mode)
    assert not any(cell.training for _, cell in plain.cells_and_names())


def test_an_untrained_adapter_has_no_effect_yet(tmp_path):
    mindpet.save_adapter(mindpet.get_peft_model(Stack(), lora()), tmp_path / "adapter")
    report = mindpet.load_adapter(Stack(), tmp_path / "adapter")
    assert report.is_verified
    assert not report.has_effect
    assert "no effect yet" in str(report)


@pytest.mark.parametrize("method", ["adapter", "ia3", "bitfit"])
def test_methods_that_change_nothing_at_first_say_so(tmp_path, method):
    config = METHODS[method].config(**({"target_modules": ["first"]} if method != "bitfit" else {}))
    network = mindpet.get_peft_model(Stack(), config)
    mindpet.save_adapter(network, tmp_path / "untrained")
    assert not mindpet.load_adapter(Stack(), tmp_path / "untrained").has_effect
    mindpet.save_adapter(fill(network), tmp_path / "trained")
    assert mindpet.load_adapter(Stack(), tmp_path / "trained").has_effect


def test_the_report_is_one_sentence(tmp_path):
    mindpet.save_adapter(trained(small_bert(), config_of("lora", modules_to_save=["classifier"])), tmp_path / "adapter")
    report = mindpet.load_adapter(small_bert(), tmp_path / "adapter")
    assert str(report) == (
        f"lora applied from {tmp_path / 'adapter'}; largest difference 0.0e+00 (allowed 2.0e-04) in "
        "bert.encoder.layer.0.attention.self.query; 3 cells and the whole network run"
    )


def test_only_the_adapter_is_written(tmp_path):
    from safetensors.numpy import load_file

    network = trained(Stack(), lora())
    mindpet.save_adapter(network, tmp_path / "adapter")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors").keys()
    assert names == adapter_parameters(network).keys()
    assert "head.weight" in names
    assert not any("mindpet_state_" in name for name in names)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_the_same_adapter_gives_the_same_files(tmp_path):
    for name in ("one", "two"):
        mindpet.save_adapter(trained(Stack(), lora()), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


class Layers(nn.Cell):
    """One layer of each kind that LoRA adapts; they are probed alone, so that nothing joins them."""

    def __init__(self):
        super().__init__()
        np.random.seed(0)
        self.embedding = nn.Embedding(7, 6)
        self.image = nn.Conv2d(6, 4, (3, 2), stride=2, dilation=2, pad_mode="same", has_bias=True)
        self.depthwise = nn.Conv2d(4, 4, 3, group=4, pad_mode="pad", padding=1)
        self.dense = nn.Dense(4, 3)
        self.linear = mint.nn.Linear(3, 2)


def test_layers_of_every_kind_are_probed(tmp_path):
    config = mindpet.LoraConfig(r=4, target_modules=["embedding", "image", "depthwise", "dense", "linear"])
    network = mindpet.get_peft_model(Layers(), config)
    mindpet.save_adapter(network, tmp_path / "untrained")
    assert not mindpet.load_adapter(Layers(), tmp_path / "untrained").has_effect
    mindpet.save_adapter(fill(network), tmp_path / "trained")
    after = Layers()
    report = mindpet.load_adapter(after, tmp_path / "trained")
    assert adapter_values(after) == adapter_values(network)
    assert (report.outcome.cells, report.outcome.ran_network) == (5, False)
    assert report.outcome.difference == 0
    assert report.has_effect


class Choosy(nn.Cell):
    """A network that has a `config` and takes `input_ids`, but of a length of its own."""

    def __init__(self):
        super().__init__()
        np.random.seed(0)
        self.config = SimpleNamespace(vocab_size=9)
        self.table = nn.Embedding(9, 4)
        self.head = nn.Dense(4, 2)

    def construct(self, input_ids):
        if input_ids.shape != (1, 3):
            raise ValueError("this network takes one text of three tokens")
        return self.head(self.table(input_ids))


def test_a_network_that_does_not_take_the_probe_is_saved_without_one(tmp_path):
    network = trained(Choosy(), mindpet.LoraConfig(r=2, target_modules=["head"]))
    with pytest.warns(UserWarning, match="without a probe of the whole network: .* one text of three tokens") as caught:
        mindpet.save_adapter(network, tmp_path / "adapter")
    assert caught[0].filename == __file__
    report = mindpet.load_adapter(Choosy(), tmp_path / "adapter")
    assert (report.outcome.cells, report.outcome.ran_network) == (1, False)
