"""`mindpet demo`: the main job on the embedded model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindpet.cli import finetune
from mindpet.cli._options import with_options
from mindpet.train.settings import FinetuneSettings, load_settings

__all__ = ["command"]

_EXAMPLES = 3


@with_options(FinetuneSettings, leave_out=("model", "data"), panels=finetune.METHOD_PANELS)
def command(**flags: Any) -> None:
    """Fine-tune all-MiniLM-L6-v2 on BBC News headlines, as `make demo` does.

    Example: mindpet demo --method adapter --overwrite
    """
    finetune.run(load_settings(None, {"out": Path("runs/demo"), **flags}), _EXAMPLES)
