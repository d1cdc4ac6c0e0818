"""Folders that hold no usable BERT: each is refused with the file, what is wrong with it, and nothing made."""

import json

import numpy as np
import pytest

from mindpet.models.bert import BertConfig, BertForSequenceClassification, BertModel
from mindpet.utils.exceptions import InputError
from tests.models.numpy_bert import TINY, random_tensors, write_folder

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def changed(**changes):
    """Weights with some tensors put in or, for None, taken out."""
    tensors = random_tensors(TINY) | {name.replace("__", "."): values for name, values in changes.items()}
    return {name: values for name, values in tensors.items() if values is not None}


def with_nan():
    tensors = random_tensors(TINY)
    tensors[QUERY][3, 2] = np.nan
    return tensors


TENSORS = {
    "missing": (changed(**{QUERY: None}), f"missing: {QUERY}"),
    "several missing": (
        {name: values for name, values in random_tensors(TINY).items() if "layer.1" not in name},
        "missing: bert.encoder.layer.1.*and 8 more",
    ),
    "unexpected": (changed(**{"bert.extra.weight": np.ones(3, np.float32)}), "not expected: bert.extra.weight"),
    "another head": (changed(**{"qa_outputs.weight": np.ones((2, 12), np.float32)}), "not expected.*qa_outputs.weight"),
    "wrong shape": (
        changed(**{QUERY: np.ones((12, 11), np.float32)}),
        rf"wrong shape: {QUERY} \[12, 11\] instead of \[12, 12\]",
    ),
    "same size, other shape": (changed(**{QUERY: np.ones((144,), np.float32)}), rf"{QUERY} \[144\] instead of"),
    "NaN": (with_nan(), f"NaN or infinite: {QUERY}"),
    "infinite": (changed(**{QUERY: np.full((12, 12), np.inf, np.float32)}), f"NaN or infinite: {QUERY}"),
    "too large for float32": (changed(**{QUERY: np.full((12, 12), 1e200)}), f"NaN or infinite: {QUERY}"),
    "integers": (changed(**{QUERY: np.ones((12, 12), np.int8)}), rf"no floating-point numbers: {QUERY} \(int8\)"),
    "classifier of another width": (
        changed(**{"classifier.weight": np.ones((4, 13), np.float32)}),
        r"classifier.weight \[4, 13\] instead of \[4, 12\]",
    ),
    "classifier whose halves disagree": (
        changed(**{"classifier.bias": np.ones(3, np.float32)}),
        r"classifier.bias \[3\] instead of \[4\]",
    ),
    "half a classifier": (changed(**{"classifier.bias": None}), "missing: classifier.bias"),
    "one tensor under two names": (
        changed(**{QUERY.removeprefix("bert."): np.ones((12, 12), np.float32)}),
        f"'{QUERY}' under two names",
    ),
    "no pooler": (
        {name: values for name, values in random_tensors(TINY).items() if "pooler" not in name},
        "no pooler.*'mean' or 'cls'",
    ),
    "half a pooler": (changed(**{"bert.pooler.dense.bias": None}), "missing: bert.pooler.dense.bias"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit(tmp_path, case):
    tensors, reason = TENSORS[case]
    folder = write_folder(tmp_path / "model", tensors=tensors)
    with pytest.raises(InputError, match=reason) as error:
        BertForSequenceClassification.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("case", ["missing", "unexpected", "wrong shape", "NaN", "integers"])
def test_the_encoder_alone_is_as_strict(tmp_path, case):
    tensors, reason = TENSORS[case]
    with pytest.raises(InputError, match=reason.replace("bert.", "")):
        BertModel.from_pretrained(write_folder(tmp_path, tensors=tensors))


def test_one_message_lists_all_problems(tmp_path):
    tensors = changed(
        **{
            QUERY: None,
            "bert.extra": np.ones(1, np.float32),
            "bert.pooler.dense.bias": np.ones(3, np.float32),
            "classifier.bias": np.ones(4, np.int32),
        }
    )
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained(write_folder(tmp_path, tensors=tensors))
    for name in (QUERY, "bert.extra", "bert.pooler.dense.bias", "classifier.bias"):
        assert name in str(error.value)


CONFIGS = {
    "gpt2": ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "'gpt2'.*GPT2LMHeadModel.*'bert'"),
    "roberta": ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "'roberta'"),
    "nothing says what it is": ({"model_type": None, "architectures": None}, "model_type is None"),
    "no type, another architecture": ({"model_type": None, "architectures": ["AlbertModel"]}, "AlbertModel"),
    "relative positions": ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    "decoder": ({"is_decoder": True}, "is_decoder is True"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention is True"),
    "pruned heads": ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
    "quantised": ({"quantization_config": {"bits": 8}}, "quantization_config is"),
    "activation": ({"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'.*gelu_new.*use a model with"),
    "heads": ({"num_attention_heads": 5}, "hidden_size is 12.*num_attention_heads"),
    "size is a string": ({"hidden_size": "12"}, "hidden_size is '12'; expected is a positive integer"),
    "size is a boolean": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "size 0": ({"vocab_size": 0}, "vocab_size is 0"),
    "dropout 1": ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
    "dropout null": ({"attention_probs_dropout_prob": None}, "attention_probs_dropout_prob is None"),
    "epsilon": ({"layer_norm_eps": 0}, "layer_norm_eps is 0"),
    "another vocabulary": ({"vocab_size": 40}, r"word_embeddings.weight \[41, 12\] instead of \[40, 12\]"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(tmp_path, case):
    changes, reason = CONFIGS[case]
    folder = write_folder(tmp_path, TINY | changes, random_tensors(TINY))
    with pytest.raises(InputError, match=reason) as error:
        BertForSequenceClassification.from_pretrained(folder)
    assert str(folder) in str(error.value)


FILES = {
    "no config.json": ("config.json", None),
    "empty config.json": ("config.json", b""),
    "config.json no JSON": ("config.json", b"{model_type: bert}"),
    "config.json a list": ("config.json", b"[1]"),
    "config.json of another encoding": ("config.json", json.dumps(TINY).encode("utf-16")),
    "no weights": ("model.safetensors", None),
    "empty weights": ("model.safetensors", b""),
    "truncated weights": ("model.safetensors", 3000),
    "weights replaced by text": ("model.safetensors", b"<html>not found</html>"),
}


@pytest.mark.parametrize("case", FILES)
def test_missing_and_damaged_files(tmp_path, case):
    name, contents = FILES[case]
    path = write_folder(tmp_path) / name
    if contents is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:contents] if isinstance(contents, int) else contents)
    with pytest.raises(InputError) as error:
        BertForSequenceClassification.from_pretrained(tmp_path)
    assert name in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        BertModel.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("arguments", [{"num_labels": 0}, {"num_labels": 2.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(InputError, match=str(next(iter(arguments.values())))):
        BertForSequenceClassification.from_pretrained(write_folder(tmp_path), **arguments)


# Configurations that are accepted


def test_foreign_keys_are_ignored_and_missing_ones_take_defaults():
    config = BertConfig.from_dict({"model_type": "bert", "hidden_size": 24, "use_cache": True, "surprise": [1]})
    assert config == BertConfig(hidden_size=24)


def test_an_old_file_counts_by_its_architecture():
    assert BertConfig.from_dict({"architectures": ["BertForMaskedLM"]}) == BertConfig()


@pytest.mark.parametrize("values", [{"num_labels": 7}, {"id2label": {str(i): "x" for i in range(7)}}])
def test_the_number_of_classes(values):
    assert BertConfig.from_dict({"model_type": "bert"} | values).num_labels == 7


def test_one_dropout_takes_the_place_of_all():
    config = BertConfig(classifier_dropout=0.3).with_dropout(0.2)
    assert config == BertConfig(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, classifier_dropout=0.2)
    assert BertConfig().with_dropout(None) == BertConfig()
