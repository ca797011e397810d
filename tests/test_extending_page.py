"""docs/extending.md: its Python blocks run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.tiny_data import draw_photo
from utils.data import registry

PAGE = Path(__file__).resolve().parents[1] / "docs/extending.md"


def test_the_examples_run(parrot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """In a folder with a model and three photos."""
    for number in range(3):
        draw_photo(tmp_path / f"photos/{number}.png", (40, 60))
    (tmp_path / "hf_model").symlink_to(parrot)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "FAMILIES", registry.FAMILIES)  # the page adds one
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    told, names = [], {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        told.append(capsys.readouterr().out)
    template, tower, dataset, loss, benchmark = told
    assert template.endswith("<|im_start|>assistant\n The cat is [SEG0] [SEG1].<|im_end|>\n\n")
    assert tower.startswith("the thing is [SEG0] [SEG1]")
    assert re.fullmatch(r"3 (The upper half is )?\{seg\}\.\n", dataset)
    assert loss == "tensor(True)\n"
    assert re.fullmatch(r"0\.\d+ 3\n", benchmark)
