"""The examples of the page on language models run."""

import re
from pathlib import Path

from tests.models.numpy_language import GPT2, write_folder

PAGE = Path(__file__).parents[2] / "docs" / "language-models.md"


def test_the_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("path/to/model"), GPT2)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert names["likeliest"].shape[0] == names["drawn"].shape[0] == 2
    assert names["likeliest"][0, 1] == names["logits"].asnumpy()[0, -1].argmax()
