"""The settings of a fine-tuning run: defaults, then a YAML file, then flags, each overriding the one before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from mindpet.storage.reader import read_yaml
from mindpet.train.methods import (
    METHOD_NAMES,
    OPTIONS,
    canonical_method,
    config_of,
    defaults_of,
    option_fields,
    read_mindformers_method,
    require_method,
)
from mindpet.train.task import CLASSIFICATION, LANGUAGE, recognise_task
from mindpet.tuning.config import PeftConfig
from mindpet.utils.exceptions import InputError
from mindpet.utils.nearest import nearest_names

__all__ = ["SETTINGS_FILE", "FinetuneSettings", "load_settings", "require_equal_shares", "settings_of_the_run"]

SETTINGS_FILE = "settings.yaml"  # in a run folder

_PLACES = {"model", "data", "out"}  # where things lie: they may have moved when a run is resumed
_REPORTS = {"report_to"}  # who is told: may change too
_ORDERS = {"overwrite", "resume"}  # what is to become of an earlier run: no part of the run itself


_OF_ONE_TASK = {  # settings that no other task has
    CLASSIFICATION: {"pooling", "head_learning_rate", "r_drop"},
    LANGUAGE: {"packing", "prompt_text"},
}
_DEFAULTS = {
    CLASSIFICATION: {"max_length": 128, "batch_size": 32},
    LANGUAGE: {"max_length": 512, "batch_size": 8},
}


def _read_off(value: Any) -> Any:
    """Return 'off' where YAML has read the word as a truth value."""
    return "off" if value is False else value


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


_MethodOptions: Any = create_model("_MethodOptions", __base__=_Settings, **option_fields())


class FinetuneSettings(_MethodOptions):
    """Everything that decides how a run goes; the command line's options are made from these fields.

    The options of the methods (`mindpet.train.methods.OPTIONS`) are fields too. Those of the chosen method, and the
    learning rate, have the method's defaults where nothing is set; those of the others are None.
    """

    task: Literal["classification", "language"] = Field(  # never None, see `_complete`
        None,  # type: ignore[arg-type]
        description="What is learnt; recognised from the model's config.json if not given.",
    )
    model: Path | None = Field(
        None,
        description="Hugging Face folder of a BERT or of a language model; all-MiniLM-L6-v2, or SmolLM2-135M-Instruct "
        "for language, if not given.",
    )
    data: Path | None = Field(
        None,
        description="File or folder of texts with labels, or of texts, prompts or chats to learn from; BBC News if not "
        "given.",
    )
    out: Path = Field(Path("runs/finetune"), description="Run folder that is written.")
    overwrite: bool = Field(False, description="Replace the run folder if it exists.")
    resume: bool = Field(False, description="Go on with the run in the run folder where it was saved last.")
    save_steps: int | None = Field(
        None, gt=0, description="Steps after which a state to resume from is saved, besides each epoch's end."
    )
    method: Annotated[str, AfterValidator(require_method)] = Field(
        "lora", description=f"What is trained, besides a classifier's new head: {', '.join(METHOD_NAMES)}."
    )
    pooling: Literal["mean", "cls", "pooler"] = Field("mean", description="What the classification head sees.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the network, in place of its own figures.")
    r_drop: float = Field(
        0.0, ge=0, description="Weight of R-Drop's divergence between two passes with other dropouts; 0 for one pass."
    )
    max_length: int = Field(  # type: ignore[assignment]  # never None, see `_complete`
        None, ge=3, description="Longest text in tokens, what is longer is cut; 128, or 512 for language, if not given."
    )
    prompt_text: str | None = Field(
        None, min_length=1, description="Text from whose first tokens the prompt of ptuning2 starts, not at random."
    )
    packing: bool = Field(False, description="Put several texts of the training split into one row of a batch.")
    batch_size: int = Field(  # type: ignore[assignment]  # never None, see `_complete`
        None, gt=0, description="Texts in a step; 32, or 8 for language, if not given."
    )
    epochs: int = Field(4, gt=0, description="Passes over the training texts.")
    learning_rate: float = Field(  # type: ignore[assignment]  # never None, see `_complete`
        None, gt=0, description="Peak learning rate; the method's own if not given."
    )
    head_learning_rate: float = Field(5e-3, gt=0, description="Peak learning rate of the head.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamWeightDecay.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the learning rate rises.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the split, the initial values, the order and dropout.")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Dtype of the products.")
    kernels: Annotated[Literal["off", "f32", "bf16"] | None, BeforeValidator(_read_off)] = Field(
        None,
        description="Native kernels on a CPU; what MINDPET_KERNELS says, or else f32 where they are, if not given.",
    )
    device: Literal["CPU", "Ascend"] = Field("CPU", description="Where the run takes place.")
    devices: int = Field(1, gt=0, description="Processes that share each batch, each on a device of its own.")
    baselines: bool = Field(
        True, description="Compare with TF-IDF and the frozen encoder, or with the language model as it was."
    )
    report_to: Literal["tensorboard"] | None = Field(
        None, description="Who is told of each step and epoch, besides log.jsonl."
    )

    @model_validator(mode="after")
    def _complete(self) -> FinetuneSettings:
        """Refuse options of other methods and tasks, and fill in what method and task decide."""
        if self.task is None:
            self._fill_in({"task": recognise_task(self.model)})
        for name, option in OPTIONS.items():
            if getattr(self, name) is not None and self.method not in option.defaults:
                owners = " or ".join(option.defaults)
                raise ValueError(
                    f"{name}: an option of {owners}, but the method is {self.method}; leave it out, or choose {owners}"
                )
        for name in sorted(self.model_fields_set & self._of_other_tasks()):
            (owner,) = (task for task, names in _OF_ONE_TASK.items() if name in names)
            raise ValueError(f"{name}: a setting of the task {owner}, but the task is {self.task}; leave it out")
        if self.r_drop and not (self.dropout or self.lora_dropout):
            raise ValueError(
                f"r_drop: {self.r_drop} was given, but without dropout both passes are the same; set dropout or "
                "lora_dropout above 0, for example to 0.1"
            )
        if self.prompt_text is not None and (self.method != "ptuning2" or self.prefix_projection):
            raise ValueError(
                "prompt_text: only a prompt of ptuning2 without prefix_projection can start from a text; choose it, or "
                "leave prompt_text out"
            )
        self._fill_in(defaults_of(self.method, self.task) | _DEFAULTS[self.task])
        return self

    def _fill_in(self, values: Mapping[str, Any]) -> None:
        """Set what is not set, and not by assignment, as nobody has set it."""
        self.__dict__.update({name: value for name, value in values.items() if getattr(self, name) is None})

    def of_the_run(self) -> dict[str, Any]:
        """Return what `settings.yaml` holds: all settings but `overwrite` and `resume`, as plain values."""
        return self.model_dump(mode="json", exclude=_ORDERS | self._foreign())

    def that_decide(self) -> dict[str, Any]:
        """Return the settings, as plain values, that must stay the same for the run to stay the same."""
        return self.model_dump(mode="json", exclude=_ORDERS | _PLACES | _REPORTS | self._foreign())

    def peft_config(self) -> PeftConfig | None:
        """Return what to attach to the network, with a classifier's head trained as well; None for full fine-tuning.

        Raises:
            InputError: The options do not fit together.
        """
        own = OPTIONS.keys() - self._of_other_methods()
        try:
            return config_of(self.method, {name: getattr(self, name) for name in own}, self.task)
        except ValidationError as error:
            raise InputError(_explain(error.errors()[0])) from error

    def _of_other_methods(self) -> set[str]:
        return {name for name, option in OPTIONS.items() if self.method not in option.defaults}

    def _of_other_tasks(self) -> set[str]:
        return {name for task, names in _OF_ONE_TASK.items() if task != self.task for name in names}

    def _foreign(self) -> set[str]:
        return self._of_other_methods() | self._of_other_tasks()


def load_settings(
    config: Path | None, flags: Mapping[str, Any], mindformers_yaml: Path | None = None
) -> FinetuneSettings:
    """Merge the defaults, the method of `mindformers_yaml`, the YAML file `config` and `flags` in rising precedence.

    Args:
        config: A YAML file that holds a mapping of field names, or None.
        flags: The fields that were given on the command line.
        mindformers_yaml: A YAML file of MindFormers with a block `pet_config`, which gives the method and its options.

    Raises:
        InputError: A file cannot be read, a key is unknown (the nearest is named), a value does not fit, an option
            belongs to another method or contradicts another option, the files and flags name two methods, or the
            devices cannot share a batch equally.
    """
    from_file = _read_config(config)
    given = {**from_file, **flags}
    if mindformers_yaml is not None:
        attached = read_mindformers_method(mindformers_yaml)
        _require_one_method(given, attached["method"], mindformers_yaml)
        given = {**attached, **given}
    try:
        settings = FinetuneSettings(**given)
    except ValidationError as error:
        detail = error.errors()[0]
        field = str(detail["loc"][0]) if detail["loc"] else ""
        place = f"{config}: " if config is not None and field in from_file and field not in flags else ""
        raise InputError(f"{place}{_explain(detail)}") from error
    settings.peft_config()
    require_equal_shares(settings)
    return settings


def _read_config(config: Path | None) -> dict[str, Any]:
    """Return the settings in a YAML file by name."""
    content = {} if config is None else read_yaml(config)
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise InputError(f"{config}: expected a mapping of settings, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _require_one_method(given: Mapping[str, Any], method: str, mindformers_yaml: Path) -> None:
    """Refuse a method beside another one from a file of MindFormers."""
    named = given.get("method", method)
    if canonical_method(str(named)) != method:
        raise InputError(
            f"method: {named} was given, but {mindformers_yaml} has a pet_config for {method}; leave one of them out"
        )


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
            things may have moved; whether they are still the same things is checked elsewhere. `report_to` may too.
        file: The run's `settings.yaml`.

    Raises:
        InputError: The file cannot be read or used, or a setting that was given differs from it.
    """
    stored = load_settings(file, {})
    for name in sorted(given.model_fields_set - _PLACES - _REPORTS - _ORDERS):
        now, then = getattr(given, name), getattr(stored, name)
        if now != then:
            raise InputError(
                f"{name}: {now!r} was given, but the run in {file.parent} has {then!r}; leave the setting out to go on "
                "with this run, or start another one with --out"
            )
    kept = {name: getattr(given, name) for name in (given.model_fields_set & (_PLACES | _REPORTS)) | {"out"} | _ORDERS}
    return stored.model_copy(update=kept)


def _explain(detail: Mapping[str, Any]) -> str:
    """Say in one sentence what pydantic found wrong."""
    message = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
    if not detail["loc"]:
        return message
    field = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        nearest = nearest_names(field, FinetuneSettings.model_fields)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see `mindpet finetune --help` for the settings"
        return f"{field}: no such setting; {hint}"
    return f"{field}: {message}, found {detail['input']!r}"
