import json

import pytest

from mindpet.data.chat import ChatTemplate, Message, Part, load_chat_template
from mindpet.utils.exceptions import InputError
from tests.data.tiny_tokenizers import CHATML, byte_level, write_tokenizer

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
OTHER = """\
{%- set count = namespace(value=0) %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set count.value = count.value + 1 %}
    {% generation %}{{ message | tojson }}{% endgeneration %}

{% endfor %}
{{ strftime_now('%Y') }} {{ count.value }} {{ tools is none }} {{ unknown_token }}
{% if add_generation_prompt %}>{% endif %}
"""
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM, HI, HO = Message("system", "Be brief."), Message("user", " Hi é <b> "), Message("assistant", "Ho\n there ")
TALKS = [[HI, HO], [SYSTEM, HI, HO], [HI, HO, Message("user", "and?"), Message("assistant", "then 😀")]]


def answers(parts):
    return [part.text for part in parts if part.is_target]


@pytest.mark.parametrize(
    ("text", "eos", "expected"),
    [
        (CHATML, "<|im_end|>", ["Ho\n there <|im_end|>", "then 😀<|im_end|>"]),
        (LLAMA3, "<|eot_id|>", ["Ho\n there<|eot_id|>", "then 😀<|eot_id|>"]),
        (LLAMA2, "</s>", [" Ho\n there </s>", " then 😀 </s>"]),
        (CHATML, None, ["Ho\n there <|im_end|>", "then 😀<|im_end|>"]),
    ],
)
def test_answers_are_the_targets_with_the_token_that_ends_them(text, eos, expected):
    special = {"bos_token": "<s>"} | ({"eos_token": eos} if eos else {})
    template = ChatTemplate(text, special, "model")
    parts = template.split(TALKS[2])
    assert answers(parts) == expected
    whole = template.render(TALKS[2])
    joined = "".join(part.text for part in parts)
    assert whole.startswith(joined) and not whole.removeprefix(joined).strip()
    for turn in (1, 3):
        before = "".join(part.text for part in parts[:turn])
        assert before == template.render(TALKS[2][:turn], add_generation_prompt=True)


@pytest.mark.parametrize("eos", ["</s>", "<|im_end|>", None])
def test_an_answer_may_speak_of_the_token_that_ends_a_text(eos):
    talk = [HI, Message("assistant", "An <|im_end|> or </s> ends it."), HI, Message("assistant", "So </s>")]
    parts = ChatTemplate(CHATML, {"eos_token": eos} if eos else {}, "model").split(talk)
    assert answers(parts) == ["An <|im_end|> or </s> ends it.<|im_end|>", "So </s><|im_end|>"]


def test_the_system_message_is_no_target():
    parts = ChatTemplate(CHATML, {"eos_token": "<|im_end|>"}, "model").split(TALKS[1])
    assert [part.is_target for part in parts] == [False, True]
    assert parts[0].text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_a_model_without_a_template_gets_a_plain_one(tmp_path):
    template = load_chat_template(write_tokenizer(tmp_path, byte_level(), eos_token="<|endoftext|>"))
    assert template.adds_special_tokens
    assert template.split([HI, HO, HI, HO]) == (
        Part("### User:\n Hi é <b> \n\n### Assistant:\n", False),
        Part("Ho\n there <|endoftext|>", True),
        Part("\n\n### User:\n Hi é <b> \n\n### Assistant:\n", False),
        Part("Ho\n there <|endoftext|>", True),
    )


def test_chatglm2_counts_rounds(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    template = load_chat_template(tmp_path)
    assert template.adds_special_tokens
    assert template.render([HI, HO, HI], add_generation_prompt=True) == (
        "[Round 1]\n\n问： Hi é <b> \n\n答：Ho\n there \n\n[Round 2]\n\n问： Hi é <b> \n\n答："
    )
    assert answers(template.split([HI, HO, HI, HO])) == ["Ho\n there", "Ho\n there"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tokenizer_config.json": {"chat_template": "a"}}, "a"),
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "b{{ eos_token }}"}, "b"),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
                }
            },
            "d",
        ),
        ({"tokenizer_config.json": {"chat_template": "{{ eos_token }}", "eos_token": {"content": "</s>"}}}, "</s>"),
        (
            {
                "tokenizer_config.json": {"chat_template": "{{ eos_token }}"},
                "special_tokens_map.json": {"eos_token": "e"},
            },
            "e",
        ),
    ],
)
def test_the_template_is_found_where_transformers_finds_it(tmp_path, files, expected):
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    template = load_chat_template(tmp_path)
    assert not template.adds_special_tokens
    assert template.render([HI]) == expected


@pytest.mark.parametrize(
    ("text", "messages", "message"),
    [
        (LLAMA2, [HI, HI], r"refuses the roles user, user \(roles must alternate user/assistant\)"),
        ("{{ ''.__class__.__mro__ }}", [HI], "refuses the roles user"),
        ("{{ messages.append(1) }}", [HI], "refuses the roles user"),
        ("{{ messages[0].name + 'x' }}", [HI], "refuses the roles user"),
        ("{{ 1 + 'x' }}", [HI], "refuses the roles user"),
    ],
)
def test_a_template_may_refuse_but_not_break_out(text, messages, message):
    with pytest.raises(InputError, match=f"model: the chat template {message}"):
        ChatTemplate(text, SPECIAL, "model").render(messages)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    text = "{% for m in messages %}{{ m.content if loop.last else m.content[:1] }};{% endfor %}"
    template = ChatTemplate(text, SPECIAL, "model")
    assert answers(template.split([Message("user", "h"), HO])) == ["Ho\n there ;"]
    with pytest.raises(InputError, match="writes answer 2 in another way once more messages follow"):
        template.split([Message("user", "h"), HO, Message("user", "h"), HO])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"chat_template": 3}, "'chat_template' is 3; expected a text"),
        ({"chat_template": "{% for %}"}, "the chat template is no Jinja"),
        ({"chat_template": [3]}, "'chat_template' is "),
    ],
)
def test_a_damaged_template_is_refused_by_file(tmp_path, config, message):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"tokenizer_config.json: {message}"):
        load_chat_template(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", [CHATML, LLAMA2, LLAMA3, OTHER], ids=["chatml", "llama2", "llama3", "other"])
def test_texts_equal_those_of_transformers(tmp_path, text):
    from transformers import AutoTokenizer

    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    config = {"chat_template": text, "tokenizer_class": "PreTrainedTokenizerFast", **roles}
    folder = write_tokenizer(tmp_path, byte_level(), **config)
    own, peer = load_chat_template(folder), AutoTokenizer.from_pretrained(folder)
    for talk in TALKS:
        for add in (False, True):
            expected = peer.apply_chat_template(
                [message._asdict() for message in talk], tokenize=False, add_generation_prompt=add
            )
            assert own.render(talk, add_generation_prompt=add) == expected
