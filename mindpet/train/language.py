"""Causal language modelling and instruction tuning: a language model, judged by its perplexity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from mindspore import Tensor, nn
from mindspore.common import dtype as mstype
from rich.console import Console

from mindpet.data.batches import length_buckets
from mindpet.data.chat import ChatTemplate, load_chat_template
from mindpet.data.embedded import smollm2_folder
from mindpet.data.instructions import load_instructions
from mindpet.data.language import LanguageBatches, encode
from mindpet.data.language_data import LanguageData
from mindpet.data.packing import pack
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.models.auto import load_causal_lm
from mindpet.train.evaluate import sum_losses
from mindpet.train.losses import LanguageLoss
from mindpet.train.metrics import perplexity
from mindpet.train.progress import announce
from mindpet.train.ranks import Ranks
from mindpet.train.settings import FinetuneSettings
from mindpet.train.task import LANGUAGE, Encoded, Metric, Tested, require_vocabulary, room_for_texts
from mindpet.tuning.prompts import start_prompt
from mindpet.utils.exceptions import InputError

__all__ = ["LanguageTask", "open_language"]


@dataclass(frozen=True)
class LanguageTask:
    """Texts or conversations and a language model; see `mindpet.train.task.Task`.

    Attributes:
        settings: What to do.
        data: The texts.
        encoded: The batches of each split.
        judge: The network with its loss, run out of training only, once the method is attached.
        prompt: The tokens (1, num_virtual_tokens) that a prompt starts from; None where it starts at random.
    """

    name: ClassVar[str] = LANGUAGE
    metric: ClassVar[Metric] = Metric("perplexity")
    embedded_model: ClassVar[str] = "HuggingFaceTB/SmolLM2-135M-Instruct"

    settings: FinetuneSettings
    data: LanguageData
    encoded: Encoded[LanguageBatches]
    judge: LanguageLoss
    prompt: np.ndarray | None

    @property
    def network(self) -> nn.Cell:
        """Gives logits (batch, length, vocabulary)."""
        return self.judge.network

    @property
    def data_name(self) -> str:
        """What to call the data."""
        return self.data.name

    @property
    def label_names(self) -> tuple[str, ...]:
        """No names, as there are no classes."""
        return ()

    @property
    def loss(self) -> Callable[[nn.Cell], nn.Cell]:
        """The cross entropy of the targets."""
        return LanguageLoss

    def measure_base(self, ranks: Ranks, console: Console) -> dict[str, float | None]:
        """Return the perplexity of the test split before anything is trained; None where it is not wanted."""
        if not self.settings.baselines:
            return {"base_perplexity": None}
        with announce(console, "perplexity of the model as it is"):
            return {"base_perplexity": _perplexity(LanguageLoss(self.network), self.encoded.test, ranks)}

    def start_method(self) -> None:
        """Let a prompt start from the tokens of the text that the settings give."""
        if self.prompt is not None:
            start_prompt(self.network, Tensor(self.prompt), Tensor(np.ones_like(self.prompt)))

    def measure_valid(self, ranks: Ranks) -> float:
        """Return the perplexity of the validation split."""
        return _perplexity(self.judge, self.encoded.valid, ranks)

    def test(self, ranks: Ranks) -> Tested:
        """Return the perplexity of the test split."""
        return Tested({"perplexity": _perplexity(self.judge, self.encoded.test, ranks)}, np.empty(0, int))


def open_language(settings: FinetuneSettings, console: Console) -> LanguageTask:
    """Read the texts and the network that the settings name.

    Raises:
        InputError: A file cannot be used, or the two do not fit together.
    """
    with announce(console, "reading the data"):
        data = load_instructions(settings.data, settings.seed, console.print)
    with announce(console, "reading the model"):
        source = settings.model or smollm2_folder(console.print)
        tokenizer, template = load_tokenizer(source), load_chat_template(source)
        network = load_causal_lm(source, dropout=settings.dropout, compute_dtype=getattr(mstype, settings.dtype))
    require_vocabulary(settings.model, tokenizer, network.config.vocab_size)
    longest = min(settings.max_length, room_for_texts(settings, network.config.max_position_embeddings))
    with announce(console, "finding the tokens"):
        encoded = _encode(data, tokenizer, template, longest, settings)
    return LanguageTask(settings, data, encoded, LanguageLoss(network), _encode_prompt_text(settings, tokenizer))


def _encode(
    data: LanguageData, tokenizer: Tokenizer, template: ChatTemplate, longest: int, settings: FinetuneSettings
) -> Encoded[LanguageBatches]:
    """Turn each split into batches; all splits have the same few widths, so that graphs are shared."""
    splits = [
        encode(split, tokenizer, template, longest, cut_passages=not (settings.packing and split is data.train))
        for split in (data.train, data.valid, data.test)
    ]
    if settings.packing:
        splits[0] = pack(splits[0], longest)
    widths = length_buckets([length for split in splits for length in split.lengths], longest, settings.batch_size)
    return Encoded(
        *(LanguageBatches(split, settings.batch_size, widths, tokenizer.pad_id, settings.seed) for split in splits)
    )


def _encode_prompt_text(settings: FinetuneSettings, tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the first tokens of `prompt_text`, as many as the prompt has, int32 (1, num_virtual_tokens)."""
    if settings.prompt_text is None:
        return None
    ids, wanted = tokenizer.tokenize(settings.prompt_text).ids, settings.num_virtual_tokens
    if len(ids) < wanted:
        raise InputError(
            f"prompt_text: it has {len(ids)} tokens, and num_virtual_tokens is {wanted}; give a longer text, or take "
            "fewer tokens"
        )
    return np.asarray(ids[None, :wanted], np.int32)


def _perplexity(loss: LanguageLoss, batches: LanguageBatches, ranks: Ranks) -> float:
    return perplexity(*sum_losses(loss, batches, ranks))
