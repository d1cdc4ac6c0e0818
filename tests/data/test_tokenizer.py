import json
from unicodedata import normalize

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from mindpet.data.embedded import minilm_folder
from mindpet.data.tokenizer import load_tokenizer
from mindpet.utils.exceptions import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHARACTERS = (
    "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自以会家可下而过天去能对"
    "小多然于心学么之都好看起发当没成只如事把还用第样道想作种开美总从无情己面最女但现前些所同日手又行意动"
    "方期它头经长儿回位分爱老因很给名法间斯知世什两次使身者被高已亲其进此话常与活正感北京真"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["hello", "world", "Hello", "cafe", "café", "bert", "the", "##ing", "##s", "WIFI", "wifi", "2020", "##20"]
PUNCTUATION = list("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~，。！？、：；“”（）《》—…·「」￥")
FULL_WIDTH = list("ＡＢａｂ０１２")
VOCABULARY = [
    *SPECIAL,
    *CHARACTERS,
    *LETTERS,
    *LETTERS.upper()[:26],
    *(f"##{letter}" for letter in LETTERS),
    *(f"##{character}" for character in CHARACTERS[:40]),
    *WORDS,
    *PUNCTUATION,
    *FULL_WIDTH,
    "é",
    "😀",
    "㐀",
    "𠀀",
    "한",
    "ß",
]
TEXTS = [
    "北京真的很美，你说呢？",
    "我在2020年学BERT和WiFi，Hello世界!",
    "ＡＢａｂ０１２　全角，半角 ab12",
    "㐀𠀀𪚥 罕见字 龘",
    "你好😀👩‍👩‍👧 emoji",
    "a\tb\nc\r\nd\x00\x07\ufffde\u200bf\u2028g\xa0h\u3000i\ufeffj",
    "café cafe\u0301 Ünïcödé naïve ß İ ﬁ",
    "한국어 カタカナ ひらがな",
    "[MASK]在[SEP]中[CLS] [PAD]x[UNK] [mask]",
    "don't co-op $3.14 “引号” a—b…",
    "a" * 150,
    "的" * 60,
    "",
    " \t ",
]


@pytest.fixture
def make_folder(tmp_path):
    """Return a function that writes a model folder with this vocabulary and tokenizer_config.json."""

    def make(config=None, vocabulary=VOCABULARY):
        (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path

    return make


def tokens_of(folder, text, max_length=32):
    names = list(dict.fromkeys(VOCABULARY))
    return " ".join(names[number] for number in load_tokenizer(folder).encode([text], max_length)[0])


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        (None, "Hello 北京s", "[CLS] hello 北 京 s [SEP]"),
        ({}, "helloing CAFÉ", "[CLS] hello ##ing cafe [SEP]"),
        ({"do_lower_case": False}, "Hello WIFI café", "[CLS] Hello WIFI café [SEP]"),
        ({"do_lower_case": True, "strip_accents": False}, "CAFÉ", "[CLS] café [SEP]"),
        ({"do_lower_case": False, "strip_accents": True}, "café", "[CLS] cafe [SEP]"),
        ({"tokenize_chinese_chars": False}, "的一", "[CLS] 的 ##一 [SEP]"),
        ({"mask_token": {"content": "[MASK]", "lstrip": False}}, "[MASK]，龘", "[CLS] [MASK] ， [UNK] [SEP]"),
        ({"cls_token": "[UNK]"}, "a", "[UNK] a [SEP]"),
    ],
)
def test_a_vocabulary_is_read_as_its_configuration_says(make_folder, config, text, expected):
    assert tokens_of(make_folder(config), text) == expected


def test_truncation_keeps_the_special_tokens(make_folder):
    tokenizer = load_tokenizer(make_folder())
    ids = tokenizer.encode(["的" * 50, "的", ""], 10)
    assert [len(tokens) for tokens in ids] == [10, 3, 2]
    assert all(tokens.dtype == np.int32 for tokens in ids)
    assert all(tokens[0] == 2 and tokens[-1] == 3 for tokens in ids)
    assert len(tokenizer.encode(["的" * 50], 20)[0]) == 20
    with pytest.raises(ValueError, match="max_length is 2; expected at least 3"):
        tokenizer.encode(["a"], 2)


def test_the_vocabulary_is_known_by_its_largest_id(make_folder):
    tokenizer = load_tokenizer(make_folder({"pad_token": "[MASK]"}, [*SPECIAL, "a", "\u2028", "b"]))
    assert tokenizer.vocab_size == 8
    assert tokenizer.pad_id == 4
    assert tokenizer.encode(["b"], 8)[0].tolist() == [2, 7, 3]


def test_the_embedded_model_is_not_cut_or_padded_to_128():
    tokenizer = load_tokenizer(minilm_folder())
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30522, 0)
    short, long = tokenizer.encode(["Hello, world!", "word " * 600], 512)
    assert short.tolist() == [101, 7592, 1010, 2088, 999, 102]
    assert len(long) == 512


def write_tokenizer_json(folder):
    """Turn a folder with vocab.txt into one with a tokenizer.json that says lowercase, and remove vocab.txt."""
    backend = load_tokenizer(folder)._backend
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "[CLS] hello wifi a b c [SEP]"),
        ({"do_lower_case": False}, "[CLS] Hello WIFI a b c [SEP]"),
        ({"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}, "[CLS] hello wifi a b c [SEP]"),
    ],
)
def test_the_configuration_decides_over_tokenizer_json(make_folder, config, expected):
    folder = make_folder()
    write_tokenizer_json(folder)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokens_of(folder, "Hello WIFI a b c") == expected


def write_incomplete_json(folder):
    tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "vocab.txt").unlink(), "holds neither tokenizer.json nor vocab.txt"),
        (lambda folder: (folder / "vocab.txt").write_text("a\nb\n"), r"vocab.txt lacks the special token '\[UNK\]'"),
        (
            lambda folder: (folder / "vocab.txt").write_bytes(b"a\n\xff\n"),
            "vocab.txt, line 2: the byte 0xff is not UTF-8",
        ),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json is no tokenizer"),
        (write_incomplete_json, r"tokenizer.json lacks the special token '\[PAD\]'"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json is no JSON object"),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"do_lower_case": "no"}'),
            "'do_lower_case' is 'no'; expected True or False",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"pad_token": "<pad>"}'),
            "special token '<pad>'",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"pad_token": {"a": 1}}'),
            "'pad_token' is {'a': 1}; expected the text of a token",
        ),
    ],
)
def test_a_damaged_tokenizer_is_refused_by_file(make_folder, change, message):
    folder = make_folder()
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


OPTIONS = [
    {},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"tokenize_chinese_chars": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_ids_equal_both_tokenizers_of_transformers(make_folder, options):
    from transformers import BertTokenizer, BertTokenizerFast

    folder = make_folder(options)
    # The two differ in one point: the slow one composes accents first (NFC), so it is given composed texts.
    for peer, texts in ((BertTokenizerFast, TEXTS), (BertTokenizer, [normalize("NFC", text) for text in TEXTS])):
        found = load_tokenizer(folder).encode(texts, 48)
        expected = peer.from_pretrained(folder)(texts, truncation=True, max_length=48)["input_ids"]
        assert [tokens.tolist() for tokens in found] == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_ids_from_tokenizer_json_equal_those_of_transformers(make_folder, options):
    from transformers import BertTokenizerFast

    folder = make_folder()
    write_tokenizer_json(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    found = load_tokenizer(folder).encode(TEXTS, 48)
    expected = BertTokenizerFast.from_pretrained(folder)(TEXTS, truncation=True, max_length=48)["input_ids"]
    assert [tokens.tolist() for tokens in found] == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_ids_of_any_text_equal_those_of_transformers(tmp_path_factory, options):
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(VOCABULARY)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    own, peer = load_tokenizer(folder), BertTokenizerFast.from_pretrained(folder)
    pieces = st.one_of(
        st.sampled_from([*VOCABULARY, *TEXTS, " ", ""]), st.characters(exclude_categories=["Cs"]), st.text(max_size=8)
    )

    @settings(max_examples=300, deadline=None)
    @given(text=st.lists(pieces, max_size=12).map("".join), max_length=st.integers(3, 40))
    def compare(text, max_length):
        found = own.encode([text], max_length)[0]
        assert found.tolist() == peer(text, truncation=True, max_length=max_length)["input_ids"]

    compare()


@pytest.mark.slow
def test_ids_of_the_embedded_model_equal_those_of_transformers():
    from transformers import AutoTokenizer

    texts = [*TEXTS, 'Fee of £7m: the "deal" isn\'t done', "Ünïcödé façade — rock'n'roll"]
    found = load_tokenizer(minilm_folder()).encode(texts, 64)
    expected = AutoTokenizer.from_pretrained(minilm_folder())(texts, truncation=True, max_length=64)["input_ids"]
    assert [tokens.tolist() for tokens in found] == expected
