"""The settings of a fine-tuning run: defaults, then a YAML file, then flags, each overriding the one before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mindpet.storage.reader import read_yaml
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["SETTINGS_FILE", "FinetuneSettings", "load_settings", "require_equal_shares", "settings_of_the_run"]

SETTINGS_FILE = "settings.yaml"  # in a run folder

_PLACES = {"model", "data", "out"}  # where things lie: they may have moved when a run is resumed
_ORDERS = {"overwrite", "resume"}  # what is to become of an earlier run: no part of the run itself


class FinetuneSettings(BaseModel):
    """Everything that decides how a run goes; the command line's options are made from these fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: Path | None = Field(None, description="Hugging Face folder of a BERT; all-MiniLM-L6-v2 if not given.")
    data: Path | None = Field(
        None, description="JSONL file or folder, or a CLUE TNEWS or IFLYTEK folder; BBC News headlines if not given."
    )
    out: Path = Field(Path("runs/finetune"), description="Run folder that is written.")
    overwrite: bool = Field(False, description="Replace the run folder if it exists.")
    resume: bool = Field(False, description="Go on with the run in the run folder where it was saved last.")
    save_steps: int | None = Field(
        None, gt=0, description="Steps after which a state to resume from is saved, besides each epoch's end."
    )
    method: Literal["lora", "bitfit", "full"] = Field("lora", description="What is trained besides the new head.")
    r: int = Field(8, gt=0, description="Rank of LoRA.")
    lora_alpha: float = Field(16, gt=0, description="LoRA's branch is scaled by lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before LoRA's branch.")
    target_modules: tuple[str, ...] = Field(("query", "value"), min_length=1, description="Layers that LoRA adapts.")
    pooling: Literal["mean", "cls", "pooler"] = Field("mean", description="What the classification head sees.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the network, in place of its own figures.")
    max_length: int = Field(128, ge=3, description="Longest text in tokens; what is longer is cut.")
    batch_size: int = Field(32, gt=0, description="Texts in a step.")
    epochs: int = Field(4, gt=0, description="Passes over the training texts.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate.")
    head_learning_rate: float = Field(5e-3, gt=0, description="Peak learning rate of the head.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamWeightDecay.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the split, the initial values, the order and dropout.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Dtype of the products.")
    device: Literal["CPU", "Ascend"] = Field("CPU", description="Where the run takes place.")
    devices: int = Field(1, gt=0, description="Processes that share each batch, each on a device of its own.")
    baselines: bool = Field(True, description="Compare with TF-IDF and with the frozen encoder.")

    def of_the_run(self) -> dict[str, Any]:
        """Return what `settings.yaml` holds: all settings but `overwrite` and `resume`, as plain values."""
        return self.model_dump(mode="json", exclude=_ORDERS)

    def that_decide(self) -> dict[str, Any]:
        """Return the settings, as plain values, that must stay the same for the run to stay the same."""
        return self.model_dump(mode="json", exclude=_ORDERS | _PLACES)


def load_settings(config: Path | None, flags: Mapping[str, Any]) -> FinetuneSettings:
    """Merge the defaults, the YAML file `config` and `flags` in rising precedence.

    Args:
        config: A YAML file that holds a mapping of field names, or None.
        flags: The fields that were given on the command line.

    Raises:
        InputError: The file cannot be read, a key is unknown (the nearest is named), a value does not fit, or the
            devices cannot share a batch equally.
    """
    from_file = {} if config is None else read_yaml(config)
    if from_file is None:
        from_file = {}
    if not isinstance(from_file, Mapping):
        raise InputError(f"{config}: expected a mapping of settings, found {type(from_file).__name__}")
    try:
        settings = FinetuneSettings(**{**{str(key): value for key, value in from_file.items()}, **flags})
    except ValidationError as error:
        detail = error.errors()[0]
        field = str(detail["loc"][0])
        place = f"{config}: " if config is not None and field in from_file and field not in flags else ""
        raise InputError(f"{place}{_explain(field, detail)}") from error
    require_equal_shares(settings)
    return settings


def require_equal_shares(settings: FinetuneSettings) -> None:
    """Refuse a batch that the devices cannot share equally.

    Raises:
        InputError: `batch_size` is no multiple of `devices`.
    """
    if settings.batch_size % settings.devices:
        raise InputError(
            f"batch_size: {settings.batch_size} texts cannot be shared equally by {settings.devices} devices; choose a "
            f"multiple of {settings.devices}"
        )


def settings_of_the_run(given: FinetuneSettings, file: Path) -> FinetuneSettings:
    """Return the settings to resume a run with: those that it was started with.

    Args:
        given: What the person has set now may agree with the run's settings. `model`, `data` and `out` may differ, as
            things may have moved; whether they are still the same things is checked elsewhere.
        file: The run's `settings.yaml`.

    Raises:
        InputError: The file cannot be read or used, or a setting that was given differs from it.
    """
    stored = load_settings(file, {})
    for name in sorted(given.model_fields_set - _PLACES - _ORDERS):
        now, then = getattr(given, name), getattr(stored, name)
        if now != then:
            raise InputError(
                f"{name}: {now!r} was given, but the run in {file.parent} has {then!r}; leave the setting out to go on "
                "with this run, or start another one with --out"
            )
    kept = {name: getattr(given, name) for name in (given.model_fields_set & _PLACES) | {"out"} | _ORDERS}
    return stored.model_copy(update=kept)


def _explain(field: str, detail: Mapping[str, Any]) -> str:
    """Say in one sentence what pydantic found wrong with `field`."""
    if detail["type"] == "extra_forbidden":
        nearest = nearest_names(field, FinetuneSettings.model_fields)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see `mindpet finetune --help` for the settings"
        return f"{field}: no such setting; {hint}"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{field}: {message}, found {detail['input']!r}"
