"""From what the user names to a task with three splits."""

from collections.abc import Callable
from pathlib import Path

from mindpet.data.bbc import load_bbc
from mindpet.data.clue import load_clue
from mindpet.data.embedded import bbc_folder
from mindpet.data.examples import ClassificationData, Split
from mindpet.data.jsonl import load_jsonl_file, load_jsonl_folder
from mindpet.storage.reader import is_folder
from mindpet.utils.exceptions import InputError

__all__ = ["ClassificationData", "Split", "load_data"]


def load_data(source: str | Path | None, seed: int, notify: Callable[[str], None] | None = None) -> ClassificationData:
    """Return the task that `source` names.

    Args:
        source: None for the embedded BBC headlines; a file with one JSON object (`text`, `label`) a line; a folder with
            train.jsonl, test.jsonl and perhaps valid.jsonl; or a CLUE folder (TNEWS, IFLYTEK) with train.json and
            dev.json.
        seed: Decides every split that the source leaves open.
        notify: Called with one sentence before the embedded data is fetched or unpacked.

    Raises:
        InputError: There is no such source, it has another form, or something in it is wrong (file and line are named).
    """
    if source is None:
        return load_bbc(bbc_folder(notify), seed)
    source = Path(source)
    if not is_folder(source):
        return load_jsonl_file(source, seed)
    if (source / "train.jsonl").exists():
        return load_jsonl_folder(source, seed)
    if (source / "train.json").exists():
        return load_clue(source, seed)
    raise InputError(
        f"{source} holds neither train.jsonl nor train.json; expected are train.jsonl and test.jsonl (`text` and "
        "`label` on each line), or a CLUE folder with train.json and dev.json."
    )
