"""Opening what a user names, a run folder or an adapter with its base, as a network that answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mindspore
from mindspore import nn
from mindspore.common import dtype as mstype

from mindpet.data.chat import ChatTemplate, load_chat_template
from mindpet.data.embedded import minilm_folder, smollm2_folder
from mindpet.data.tokenizer import Tokenizer, load_tokenizer
from mindpet.graph import load_trainable, newest_whole
from mindpet.graph.parameters import canonical_name
from mindpet.models.auto import load_causal_lm
from mindpet.models.bert import POOLINGS, BertForSequenceClassification
from mindpet.storage.reader import read_json, require_folder
from mindpet.train.inspection import Contents, inspect_adapter
from mindpet.train.methods import FULL
from mindpet.train.settings import SETTINGS_FILE, FinetuneSettings, load_settings
from mindpet.train.task import CLASSIFICATION, LANGUAGE, require_vocabulary
from mindpet.tuning.attach import get_peft_model
from mindpet.tuning.config import BitFitConfig
from mindpet.tuning.exchange.load import load_adapter
from mindpet.tuning.exchange.report import LoadReport, UnverifiedAdapterWarning
from mindpet.tuning.exchange.values import FLOATS
from mindpet.tuning.state import state_of
from mindpet.utils.environment import choose_device
from mindpet.utils.exceptions import InputError

__all__ = ["Notify", "RefusedAdapterError", "Served", "open_adapter", "open_run", "reread"]

Notify = Callable[[str], None]

_HEAD_WEIGHT = "classifier.weight"


class RefusedAdapterError(InputError):
    """An adapter does not fit a base model, or gives other outputs with it than it gave when it was saved."""


@dataclass(frozen=True)
class Served:
    """A network that answers as it did when its training ended.

    Attributes:
        path: What the user named.
        settings: Those of the run; of a bare adapter the defaults, with what its record and its base tell.
        source: The folder of the base model.
        network: Base and adapter, out of training.
        tokenizer: The base's.
        template: The base's, for conversations; None where the network is a classifier.
        label_names: The classes in order; None for a bare adapter, which does not name them.
        report: What loading the adapter has proved; None after full fine-tuning.
    """

    path: Path
    settings: FinetuneSettings
    source: Path
    network: Any
    tokenizer: Tokenizer
    template: ChatTemplate | None
    label_names: tuple[str, ...] | None
    report: LoadReport | None

    @property
    def is_language(self) -> bool:
        """Whether it is a language model rather than a classifier."""
        return self.settings.task == LANGUAGE

    @property
    def room(self) -> int:
        """How many tokens a text may have beside the method's prefix."""
        state = state_of(self.network)
        prefixes = [getattr(config, "num_virtual_tokens", 0) for config in state.configs] if state else []
        return self.network.config.max_position_embeddings - max(prefixes, default=0)

    @property
    def longest(self) -> int:
        """How many tokens are looked at of a text: what training has looked at."""
        return min(self.settings.max_length, self.room)


def open_run(path: str | Path, model: str | Path | None = None, notify: Notify | None = None) -> Served:
    """Read a finished run and its base model, and prove by the adapter's probe that the two belong together.

    Args:
        path: The run folder.
        model: Where the base model lies now, if it is not where it was when the run was made.
        notify: Called with one sentence before steps that take a while, and with what loading has proved.

    Raises:
        InputError: The folder is no run or an unfinished one, something is missing or damaged, or the base model is
            another one than the run's.
    """
    path = Path(path)
    settings = _read_settings(path)
    if model is not None:
        settings = settings.model_copy(update={"model": Path(model)})
    label_names = None if settings.task == LANGUAGE else tuple(read_json(path / "labels.json"))
    _choose_device(settings)
    source = _find_base(path, settings, notify)
    network, report = _build(source, settings, len(label_names or ())), None
    if settings.method == FULL:
        _load_newest(network, path / "checkpoints")
    else:
        report = _load(network, inspect_adapter(path / "adapter"), settings.dtype)
    return _serve(path, settings, source, network, label_names, report, notify)


def open_adapter(adapter: str | Path, model: str | Path, notify: Notify | None = None) -> Served:
    """Read an adapter and the base model that it is for, without the run that made it.

    A classifier's adapter does not say what the head sees: where it has a probe, the pooling that repeats it is taken.
    An adapter of Hugging Face PEFT has none, and transformers' pooler is taken.

    Args:
        adapter: What `mindpet.load_adapter` reads.
        model: The base model's folder.
        notify: As in `open_run`.

    Raises:
        RefusedAdapterError: `mindpet.load_adapter` refuses it.
        InputError: Something of the adapter or the base model is missing or damaged.
    """
    source, contents = require_folder(model), inspect_adapter(adapter)
    settings = FinetuneSettings(model=source, dtype=_dtype_of_base(contents))
    _choose_device(settings)
    refusal: InputError | None = None
    for pooling in POOLINGS if settings.task == CLASSIFICATION else POOLINGS[:1]:
        settings = settings.model_copy(update={"pooling": pooling})
        try:
            network = _build(source, settings, _count_labels(contents))
        except InputError:
            if pooling == "pooler" and settings.task == CLASSIFICATION:  # which the folder need not have
                continue
            raise
        try:
            report = _load(network, contents, settings.dtype)
        except InputError as error:
            refusal = refusal or error
        else:
            return _serve(Path(adapter), settings, source, network, None, report, notify)
    raise RefusedAdapterError(str(refusal)) from refusal


def reread(served: Served, folder: Path) -> Served:
    """Return the same with another folder's network, its parameters in the same dtypes: what merging has written."""
    dtypes = {parameter.name: parameter.dtype for parameter in served.network.get_parameters()}
    network = _build(folder, served.settings, None)
    for parameter in network.get_parameters():
        parameter.set_dtype(dtypes[parameter.name])
    network.set_train(False)
    return replace(served, network=network)


def _read_settings(path: Path) -> FinetuneSettings:
    """Return the settings of a finished run."""
    if not (require_folder(path) / SETTINGS_FILE).is_file():
        raise InputError(f"{path}: no run folder (it has no {SETTINGS_FILE}); name one that `mindpet finetune` wrote")
    if not (path / "metrics.json").is_file():
        raise InputError(f"{path}: the run is not finished; `mindpet finetune --out {path} --resume` goes on with it")
    return load_settings(path / SETTINGS_FILE, {})


def _choose_device(settings: FinetuneSettings) -> None:
    choose_device(settings.device)
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def _find_base(path: Path, settings: FinetuneSettings, notify: Notify | None) -> Path:
    """Return the folder of the run's base model."""
    if settings.model is None:
        return smollm2_folder(notify) if settings.task == LANGUAGE else minilm_folder(notify)
    if not settings.model.is_dir():
        raise InputError(
            f"{path}: its base model {settings.model} is not an existing folder; name where it lies now with --model"
        )
    return settings.model


def _build(source: Path, settings: FinetuneSettings, num_labels: int | None) -> nn.Cell:
    """Return the network of the task with the weights of a folder."""
    dtype = getattr(mstype, settings.dtype)
    if settings.task == LANGUAGE:
        return load_causal_lm(source, dropout=0.0, compute_dtype=dtype)
    return BertForSequenceClassification.from_pretrained(
        source, num_labels=num_labels, pooling=settings.pooling, dropout=0.0, compute_dtype=dtype
    )


def _load(network: nn.Cell, contents: Contents, dtype: str) -> LoadReport:
    """Store what the adapter does not hold in the run's dtype, as in training, and load the adapter."""
    held = {tensor.name for tensor in contents.tensors}
    for parameter in network.get_parameters():
        if canonical_name(parameter.name) not in held:
            parameter.set_dtype(getattr(mstype, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnverifiedAdapterWarning)  # the report is shown in its place
        return load_adapter(network, contents.path, compute_dtype=getattr(mstype, dtype))


def _load_newest(network: nn.Cell, checkpoints: Path) -> None:
    """Load the last checkpoint of a run that has trained everything: every cell is marked as trained whole."""
    newest = newest_whole(checkpoints)
    if newest is None:
        raise InputError(f"{checkpoints} holds no whole checkpoint; run the training again with --overwrite")
    cells = [name for name, cell in network.name_cells().items() if cell.parameters_dict()]
    get_peft_model(network, BitFitConfig(modules_to_save=tuple(cells)))
    load_trainable(network, newest)


def _dtype_of_base(contents: Contents) -> str:
    """Return the dtype that the base had when the adapter was saved."""
    dtypes = [tensor.dtype for tensor in contents.record.base.values()] if contents.record else []
    return max((dtype for dtype in dtypes if dtype in FLOATS), key=FLOATS.index, default=FLOATS[0])


def _count_labels(contents: Contents) -> int | None:
    """Return how many classes the adapter's head has; None where it has no head, and the base's is taken."""
    return next((tensor.shape[0] for tensor in contents.tensors if tensor.name.endswith(_HEAD_WEIGHT)), None)


def _serve(
    path: Path,
    settings: FinetuneSettings,
    source: Path,
    network: Any,
    label_names: tuple[str, ...] | None,
    report: LoadReport | None,
    notify: Notify | None,
) -> Served:
    tokenizer = load_tokenizer(source)
    require_vocabulary(source, tokenizer, network.config.vocab_size)
    template = load_chat_template(source) if settings.task == LANGUAGE else None
    network.set_train(False)
    if notify and report:
        notify(str(report))
    return Served(path, settings, source, network, tokenizer, template, label_names, report)
