import pytest
from mindspore import nn

import mindpet
from mindpet.tuning.config import AdapterConfig, LoraConfig, PTuning2Config
from mindpet.utils.exceptions import InputError
from tests.methods import small_bert


def _attached():
    return mindpet.get_peft_model(
        small_bert(layers=4),
        [
            LoraConfig(r=2, rank_pattern={r"layer\.0\..*": 3}, modules_to_save=["classifier"]),
            AdapterConfig(bottleneck_size=2, target_modules=["intermediate.dense"]),
        ],
    )


def test_the_report_shows_what_each_entry_has_matched():
    report = mindpet.target_report(_attached())
    layers = [f"bert.encoder.layer.{number}.attention.self.query" for number in range(4)]
    assert [(match.method, match.field, match.entry, len(match.paths)) for match in report.matches] == [
        ("lora", "modules_to_save", "classifier", 1),
        ("lora", "target_modules", "attention.self.query", 4),
        ("lora", "target_modules", "attention.self.value", 4),
        ("lora", "rank_pattern", r"layer\.0\..*", 2),
        ("adapter", "target_modules", "intermediate.dense", 4),
    ]
    assert report.matches[1].paths == tuple(layers)
    lines = str(report).splitlines()
    assert lines[0] == "lora modules_to_save    'classifier'            1: classifier"
    assert lines[1] == f"lora target_modules     'attention.self.query'  4: {', '.join(layers[:3])} and 1 more"


def test_a_report_of_nothing_says_so():
    assert str(mindpet.target_report(mindpet.get_peft_model(small_bert(), PTuning2Config()))) == (
        "the configurations name no cells"
    )
    with pytest.raises(InputError, match="nothing is attached to this BertForSequenceClassification"):
        mindpet.target_report(small_bert())


def test_the_line_of_trainable_parameters_counts_no_state(capsys):
    network = _attached()
    mindpet.print_trainable_parameters(network)
    count = mindpet.count_parameters(network)
    head, adapters = 8 * 3 + 3, 4 * (12 * 2 * 2 + 2 + 12)
    assert count.trainable == (3 + 3 + 6 * 2) * (8 + 8) + head + adapters
    assert capsys.readouterr().out == f"trainable: {count.trainable:,} of {count.total:,} ({count.ratio:.4%})\n"


def test_the_summary_has_a_row_for_each_layer_of_a_stack():
    network = _attached()
    lines = mindpet.network_summary(network).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == [
        "cell",
        "bert.embeddings",
        *(f"bert.encoder.layer.{number}" for number in range(4)),
        "bert.pooler",
        "dropout",
        "classifier",
        "in",
    ]
    assert rows["bert.encoder.layer.3"].split()[1:6] == ["BertLayer", "lora", "x2,", "adapter", "x1"]
    layer = 4 * (8 * 8 + 8) + 2 * (8 * 12) + 12 + 8 + 4 * 8 + 2 * 2 * (8 + 8) + 62
    assert rows["bert.encoder.layer.3"].split()[6:] == [str(layer), str(2 * 2 * (8 + 8) + 62)]
    total = mindpet.count_parameters(network)
    assert rows["in"].split()[-2:] == [f"{total.total:,}", f"{total.trainable:,}"]


def test_the_summary_of_a_network_without_lists_or_methods():
    lines = mindpet.network_summary(nn.SequentialCell(nn.Dense(2, 3), nn.ReLU())).splitlines()
    assert [line.split() for line in lines] == [
        ["cell", "type", "attached", "parameters", "trainable"],
        ["0", "Dense", "9", "9"],
        ["1", "ReLU", "0", "0"],
        ["in", "all", "SequentialCell", "9", "9"],
    ]
