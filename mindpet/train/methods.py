"""The methods of a run: their options as settings, and the configuration that settings describe.

All of it follows from the configurations in `mindpet.tuning.config`. MindSpore is not imported, as the command line's
help is made from here.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Optional

from pydantic import Field

from mindpet.train.task import CLASSIFICATION, LANGUAGE
from mindpet.tuning.config import PeftConfig
from mindpet.utils.nearest import nearest_names

__all__ = [
    "CONFIGS",
    "FULL",
    "HEAD",
    "METHOD_NAMES",
    "OPTIONS",
    "Option",
    "canonical_method",
    "config_of",
    "defaults_of",
    "option_fields",
    "read_mindformers_method",
    "require_method",
]

FULL = "full"
HEAD = "classifier"

_HANDLED = "modules_to_save"  # of each configuration: a run trains its head, if any, and nothing else besides
_SYNONYMS = {"prefix": "prefixtuning"}

# Peak learning rates with which each method learns the demo's task, chosen on its validation split.
_USUAL_RATE = 5e-4
_RATES = {
    "adapter": 5e-4,
    "low_rank_adapter": 2e-3,
    "prefixtuning": 2e-4,
    "ptuning2": 3e-2,
    "bitfit": 3e-3,
    "ia3": 1e-2,
    FULL: 1e-4,
}
# Where a language model wants another one, chosen on SmolLM2 and news; docs/language-tuning.md has the figures.
_LANGUAGE_RATES = {"lora": 2e-3, "prefixtuning": 1e-3, "ptuning2": 5e-3, "vera": 1e-2, FULL: 2e-5}
# Wider layers do not bear that rate.
_LANGUAGE_OPTIONS: dict[str, dict[str, Any]] = {"prefixtuning": {"encoder_hidden_size": 128}}
_OTHER_DEFAULTS: dict[str, dict[str, Any]] = {"lora": {"lora_alpha": 16.0}}


def _below(config: type[PeftConfig]) -> Iterator[type[PeftConfig]]:
    """Yield the configurations that are made from this one."""
    for child in config.__subclasses__():
        yield child
        yield from _below(child)


CONFIGS = {config.method: config for config in _below(PeftConfig)}
METHOD_NAMES = (*CONFIGS, FULL)


@dataclass(frozen=True)
class Option:
    """A field of one or several methods' configurations.

    Attributes:
        name: Its name.
        defaults: Its default in a run, by method.
        meanings: What it means, by method, as the configuration's docstring says.
    """

    name: str
    defaults: dict[str, Any]
    meanings: dict[str, str]

    def __str__(self) -> str:
        """Return a text for the command line's help."""
        return " ".join(f"{', '.join(methods)}: {text}" for text, methods in self._by_text().items())

    def _by_text(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for method, meaning in self.meanings.items():
            default = self.defaults[method]
            shown = "" if default is None or default == {} else f" (default: {default})"
            texts.setdefault(f"{meaning}{shown}", []).append(method)
        return texts


def _meanings(config: type[PeftConfig]) -> dict[str, str]:
    """Return the text of each field from the section `Attributes` of a configuration's docstring."""
    section = (inspect.getdoc(config) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: re.sub(r"; (?:also|see) [^.]*", "", " ".join(text.split())) for name, text in entries}


def _collect_options() -> dict[str, Option]:
    options: dict[str, Option] = {}
    for method, config in CONFIGS.items():
        meanings = _meanings(config)
        for name, field in config.model_fields.items():
            if name != _HANDLED:
                option = options.setdefault(name, Option(name, {}, {}))
                option.defaults[method] = _OTHER_DEFAULTS.get(method, {}).get(name, field.default)
                option.meanings[method] = meanings.get(name, "")
    return options


OPTIONS: dict[str, Option] = _collect_options()


def option_fields() -> dict[str, Any]:
    """Return a field of pydantic for each option: of the configuration's type, or None for the method's default."""
    fields = {}
    for name, option in OPTIONS.items():
        field = CONFIGS[next(iter(option.defaults))].model_fields[name]
        parts = (field.annotation, *field.metadata)
        kind: Any = Annotated[parts] if field.metadata else field.annotation
        fields[name] = (Optional[kind], Field(None, description=str(option)))  # noqa: UP045, a type made at run time
    return fields


def defaults_of(method: str, task: str = CLASSIFICATION) -> dict[str, Any]:
    """Return what a run takes for the method's options and its learning rate where nothing is set."""
    defaults = {name: option.defaults[method] for name, option in OPTIONS.items() if method in option.defaults}
    rates = _RATES
    if task == LANGUAGE:
        rates = _RATES | _LANGUAGE_RATES
        defaults |= _LANGUAGE_OPTIONS.get(method, {})
    return defaults | {"learning_rate": rates.get(method, _USUAL_RATE)}


def canonical_method(name: str) -> str:
    """Return a method's name as METHOD_NAMES has it: in lower case, and 'prefixtuning' for 'prefix'."""
    return _SYNONYMS.get(name.lower(), name.lower())


def require_method(name: str) -> str:
    """Return the canonical name of a method.

    Raises:
        ValueError: There is no such method; the message names the nearest.
    """
    method = canonical_method(name)
    if method not in METHOD_NAMES:
        nearest = nearest_names(name, METHOD_NAMES)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"choose one of {', '.join(METHOD_NAMES)}"
        raise ValueError(f"no such method; {hint}")
    return method


def config_of(method: str, options: Mapping[str, Any], task: str = CLASSIFICATION) -> PeftConfig | None:
    """Return what to attach for a method, with the head of a classifier trained as well; None for full fine-tuning."""
    trained_whole = (HEAD,) if task == CLASSIFICATION else ()
    return None if method == FULL else CONFIGS[method](**options, modules_to_save=trained_whole)


def read_mindformers_method(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return method and options from the block `pet_config` of a MindFormers YAML file, as settings.

    Raises:
        InputError: The file cannot be read or holds no block that can be used.
    """
    from mindpet.tuning.mindformers import read_mindformers_config

    config = read_mindformers_config(path)
    return {"method": config.method, **config.model_dump(exclude={_HANDLED}, exclude_unset=True)}
