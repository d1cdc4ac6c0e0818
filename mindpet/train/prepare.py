"""Everything that a fine-tuning run needs, read and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import mindspore
from mindspore import nn
from mindspore.common import dtype as mstype
from rich.console import Console

from mindpet import kernels
from mindpet.data.batches import RowBatches
from mindpet.train.methods import HEAD
from mindpet.train.ranks import Ranks, join_ranks
from mindpet.train.resume import Origin, SavedRun, fingerprint_data, fingerprint_parameters, read_run
from mindpet.train.run_folder import RunFolder
from mindpet.train.settings import FinetuneSettings
from mindpet.train.task import LANGUAGE, Encoded, Task
from mindpet.tuning.accelerate import accelerate
from mindpet.tuning.attach import get_peft_model
from mindpet.utils.environment import choose_device
from mindpet.utils.exceptions import InputError
from mindpet.utils.names import STATE_MARK

__all__ = ["Job", "is_head", "prepare"]


@dataclass(frozen=True)
class Job:
    """A run that is about to begin or to go on, everything read and checked.

    Attributes:
        settings: What to do; with the kernels that are in use.
        folder: Where the result goes.
        task: Data and network, the method attached.
        ranks: The processes of the run.
        console: Where this process shows how the run goes on.
        origin: What the run is made from.
        baselines: What the result is compared with, by names in the metrics.
        saved: What an earlier part of the run has left, or None.
    """

    settings: FinetuneSettings
    folder: RunFolder
    task: Task
    ranks: Ranks
    console: Console
    origin: Origin
    baselines: dict[str, float | None]
    saved: SavedRun | None

    @property
    def network(self) -> nn.Cell:
        """The network that is trained."""
        return self.task.network

    @property
    def encoded(self) -> Encoded[RowBatches[Any]]:
        """The batches of each split."""
        return self.task.encoded


def prepare(settings: FinetuneSettings, folder: RunFolder, console: Console) -> Job:
    """Read and check everything that the run needs, attach the method to the network, and accelerate it.

    With several devices the processes meet here, and only the first one goes on to print.

    Raises:
        InputError: A file or setting cannot be used, or differs from what the run to be resumed was made from or from
            what the other processes have read.
    """
    _choose_device(settings)
    ranks = join_ranks(settings.devices)
    if not ranks.is_first:
        console = Console(quiet=True)
    settings = _choose_kernels(settings)
    saved = read_run(folder.state) if settings.resume and folder.state.exists() else None
    mindspore.set_seed(settings.seed)
    task = _open_task(settings, console)
    origin = _origin(settings, task)
    if saved is not None:
        saved.require_origin(origin, folder.state)
    ranks.require_same(repr((origin, saved.position if saved else None)))
    baselines = task.measure_base(ranks, console) if saved is None else saved.baselines
    _attach(task.network, settings)
    task.start_method()
    if settings.kernels != "off":
        console.print(f"kernels {settings.kernels}: {accelerate(task.network).in_short()}", soft_wrap=True)
    return Job(settings, folder, task, ranks, console, origin, baselines, saved)


def _open_task(settings: FinetuneSettings, console: Console) -> Task:
    """Read data and network of the task; each task brings libraries that the other one does not need."""
    if settings.task == LANGUAGE:
        from mindpet.train.language import open_language

        return open_language(settings, console)
    from mindpet.train.classification import open_classification

    return open_classification(settings, console)


def _origin(settings: FinetuneSettings, task: Task) -> Origin:
    """Return what tells this run from another one. The head is new or trained, and so no part of the base model."""
    encoded = task.encoded
    batches = chain(encoded.train.epoch(0), encoded.valid.ordered(), encoded.test.ordered())
    base = [parameter for parameter in task.network.get_parameters() if not is_head(parameter.name)]
    return Origin(settings.that_decide(), fingerprint_data(task.label_names, batches), fingerprint_parameters(base))


def is_head(name: str) -> bool:
    """Tell whether a parameter of this name belongs to the classification head."""
    return name.startswith(f"{HEAD}.")


def _choose_device(settings: FinetuneSettings) -> None:
    """Set graph mode on the device, or say why it cannot be used."""
    if settings.device == "CPU" and settings.dtype == "bfloat16":
        raise InputError(
            "dtype: MindSpore has no bfloat16 matrix product on a CPU; choose float32 or float16, or --device Ascend"
        )
    choose_device(settings.device)
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def _choose_kernels(settings: FinetuneSettings) -> FinetuneSettings:
    """Use the kernels of the settings, and return the settings with those that are in use.

    Raises:
        InputError: The wanted ones are not possible here.
    """
    if settings.kernels is not None:
        try:
            kernels.use_kernels(settings.kernels)
        except InputError as error:
            raise InputError(f"kernels: {error}") from error
    in_use = kernels.kernels_in_use()
    if settings.kernels not in (None, in_use):
        raise InputError(
            f"kernels: {settings.kernels} was given, but native kernels serve one process on a CPU; leave the setting "
            "out, or give off"
        )
    return settings.model_copy(update={"kernels": in_use})


def _attach(network: nn.Cell, settings: FinetuneSettings) -> None:
    """Make the parameters of the method and the head trainable, and store the frozen ones in the run's dtype."""
    dtype = getattr(mstype, settings.dtype)
    config = settings.peft_config()
    if config is not None:
        get_peft_model(network, config, compute_dtype=dtype)
    for parameter in network.get_parameters():
        frozen = not parameter.requires_grad and STATE_MARK not in parameter.name
        if frozen and parameter.dtype == mstype.float32:
            parameter.set_dtype(dtype)
