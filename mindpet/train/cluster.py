"""What a process is told by whoever started it as one of several: MindSpore's `msrun`, or `mindpet finetune --devices`.

Both set the environment variables of MindSpore's dynamic cluster, from which `mindspore.communication.init` learns how
to find the other processes.
"""

from __future__ import annotations

import os

from mindpet.train.settings import SETTINGS_FILE, FinetuneSettings, require_equal_shares, settings_of_the_run
from mindpet.utils.exceptions import InputError

__all__ = ["devices_to_launch", "in_cluster", "is_scheduler", "require_devices", "with_devices_of_the_cluster"]


def in_cluster() -> bool:
    """Tell whether this process was started as one of several."""
    return "MS_ROLE" in os.environ


def is_scheduler() -> bool:
    """Tell whether this process is no rank, and only brings the ranks together."""
    return os.environ.get("MS_ROLE") == "MS_SCHED"


def devices_to_launch(settings: FinetuneSettings) -> int:
    """Return for how many devices processes must be started; 1 where this process is enough, or is one of them.

    Raises:
        InputError: A run is to be resumed whose settings cannot be read, or differ from what was given.
    """
    if in_cluster():
        return 1
    stored = settings.out / SETTINGS_FILE
    if settings.resume and stored.exists():
        settings = settings_of_the_run(settings, stored)
    return settings.devices


def with_devices_of_the_cluster(settings: FinetuneSettings) -> FinetuneSettings:
    """Return the settings with `devices` as `msrun` has it, unless it was given."""
    if "devices" in settings.model_fields_set or not in_cluster():
        return settings
    return settings.model_copy(update={"devices": _cluster_size()})


def require_devices(settings: FinetuneSettings) -> None:
    """Refuse a number of devices for which there are not as many processes, or which cannot share a batch equally.

    Raises:
        InputError: There are more or fewer processes, or `batch_size` is no multiple of `devices`.
    """
    if settings.devices != _cluster_size():
        raise InputError(
            f"devices: {settings.devices}, but the processes started are {_cluster_size()}; use the command `mindpet "
            f"finetune --devices {settings.devices}`, or msrun with --worker_num {settings.devices}"
        )
    require_equal_shares(settings)


def _cluster_size() -> int:
    return int(os.environ["MS_WORKER_NUM"]) if in_cluster() else 1
