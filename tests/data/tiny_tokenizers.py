"""Very small tokenizers of every kind that language models have."""

import io
import json

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "Hello, world! The quick brown fox jumps over the lazy dog in 2024.",
    "  two spaces, a\ttab\nand\r\n\r\nlines   end  ",
    "北京真的很美，你说呢？ 你好😀 naïve café 한국어",
    "don't I'll we're 3.14 1234567 ½ x² Ⅷ",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(special=SPECIAL, split=None):
    """Return a byte-level BPE that has learnt some merges; `split` stands before the bytes."""
    backend = tokenizers.Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only]) if split else bytes_only
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def write_tokenizer(folder, backend, **config):
    """Write a folder with tokenizer.json and tokenizer_config.json, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


LLAMA3 = (  # how Llama 3 splits a text before the merges
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def gpt2(folder):
    return write_tokenizer(folder, byte_level(), tokenizer_class="GPT2Tokenizer")


def gpt2_files(folder):
    """As GPT-2 was published first: vocab.json and merges.txt."""
    folder.mkdir()
    backend = byte_level(special=["<|endoftext|>"])
    backend.model.save(str(folder))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def llama2(folder):
    """Metaspace with byte fallback, and a processor that adds nothing: the configuration decides."""
    characters = sorted({*"".join(TEXTS), "▁"} - {" ", "😀"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), *characters]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return write_tokenizer(folder, backend, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>")


def llama3(folder):
    backend = byte_level(["<|begin_of_text|>", "<|eot_id|>"], split(LLAMA3))
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]),
        ]
    )
    config = {"bos_token": "<|begin_of_text|>", "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>"}}
    return write_tokenizer(folder, backend, tokenizer_class="PreTrainedTokenizerFast", **config)


def qwen2(folder):
    backend = byte_level(split=split(LLAMA3.replace("{1,3}", "")))
    backend.normalizer = normalizers.NFC()
    return write_tokenizer(folder, backend, tokenizer_class="Qwen2Tokenizer", eos_token="<|im_end|>", bos_token=None)


def smollm(folder):
    backend = byte_level(split=pre_tokenizers.Digits(individual_digits=True))
    roles = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2], "unk_token": SPECIAL[0]}
    return write_tokenizer(folder, backend, tokenizer_class="GPT2Tokenizer", **roles)


KINDS = [gpt2, gpt2_files, llama2, llama3, qwen2, smollm]


def glm2(folder):
    """A sentencepiece model as ChatGLM2 has it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in TEXTS if "😀" not in text and text] * 20),
        model_writer=model,
        vocab_size=350,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    return folder
