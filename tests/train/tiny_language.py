"""Very small language models and data of each form, for tests that need files but no meaning."""

import json

import mindspore
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mindpet.models.auto import read_model_type
from mindpet.models.decoder import DecoderForCausalLM
from mindpet.models.gpt2 import GPT2LMHeadModel
from mindpet.utils.names import file_name

END = "<|endoftext|>"
WORDS = 257  # the bytes and the end
_SHARED = {"vocab_size": WORDS, "initializer_range": 0.3, "eos_token_id": WORDS - 1, "bos_token_id": WORDS - 1}
_DECODER = _SHARED | {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
CONFIGS = {
    "gpt2": _SHARED | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "llama": _DECODER,
    "glm": _DECODER | {"tie_word_embeddings": False, "partial_rotary_factor": 0.5, "attention_bias": True},
}
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_language_model(folder, model_type="gpt2"):
    """Write a model folder with random weights and a tokenizer of bytes as Hugging Face lays it out, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type} | CONFIGS[model_type]))
    assert read_model_type(folder) == model_type
    cls = GPT2LMHeadModel if model_type == "gpt2" else DecoderForCausalLM
    mindspore.set_seed(1)
    network = cls(cls.config_class.from_folder(folder))
    tensors = {file_name(parameter.name): parameter.asnumpy() for parameter in network.get_parameters()}
    if model_type == "gpt2":
        tensors = {name: (value.T.copy() if name.endswith(_CONV1D) else value) for name, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | {END: WORDS - 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


FORMS = {
    "text": lambda question, answer: {"text": f"{question} {answer}"},
    "completion": lambda question, answer: {"prompt": question, "completion": answer},
    "instruction": lambda question, answer: {"instruction": "add", "input": question, "output": answer},
    "messages": lambda question, answer: {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    },
}


def write_answers(file, form="text", count=40):
    """Write questions with answers of unequal lengths as JSON lines of a form, and return the file."""
    pairs = ((f"{number % 7}+{number % 5}", "ab" * (number % 4 + 1)) for number in range(count))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(FORMS[form](*pair)) + "\n" for pair in pairs))
    return file
