"""scripts/predict.py in processes: two divide the images, and one goes on where two were killed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts import predict
from tests.support.launch import run
from tests.support.tiny_data import draw_photo

PAGE = Path(__file__).resolve().parents[2] / "docs/predict.md"
# Runs the command, and ends at once when the first batch is written.
_KILLED = """
import os, sys
from scripts import predict
from utils.inference import folder
append = folder.append
def write(*arguments, **named):
    append(*arguments, **named)
    os._exit(9)
folder.append = write
predict.main(sys.argv[1:])
"""


def commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ").strip() for block in blocks]


@pytest.fixture
def place(parrot, tmp_path) -> Path:
    """A folder with what the page names."""
    shutil.copytree(parrot, tmp_path / "runs/toy/hf_model")
    (tmp_path / "photos").mkdir()
    for number in range(1, 5):
        draw_photo(tmp_path / f"photos/{number}.jpg", (20 + number, 30))
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text(re.search(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1])
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")
def test_one_process_ends_what_two_began(forks, place):
    """Batches of one, so that no number depends on who answers."""
    flags = [f"--version={place / 'runs/toy/hf_model'}", f"--input={place / 'photos'}", "--batch_size=1"]
    flags += ["--precision=fp32", "--prompt", "What is it?", "Where?"]
    outputs = [place / name for name in ("one", "two", "killed")]
    assert forks.python("scripts/predict.py", *flags, f"--output={outputs[0]}").code == 0
    together = forks.python("scripts/predict.py", *flags, f"--output={outputs[1]}", processes=2)
    assert together.code == 0, together.text
    assert together.stdout.count("4 images, 8 questions, 8 targets, 0 failed; 8 questions in") == 1
    killed = forks.python("-c", _KILLED, *flags, f"--output={outputs[2]}", processes=2)
    assert killed.code, killed.text
    assert list(outputs[2].glob("predictions*.jsonl"))
    assert not (outputs[2] / "index.html").exists()
    assert forks.python("scripts/predict.py", *flags, f"--output={outputs[2]}").code == 0
    for output in outputs[1:]:
        for name in ("predictions.jsonl", "annotations.json", "index.html"):
            assert (output / name).read_bytes() == (outputs[0] / name).read_bytes(), f"{output.name}/{name}"
        assert {path.name for path in output.iterdir()} == {path.name for path in outputs[0].iterdir()}


def test_the_commands_of_the_page_run(place, monkeypatch):
    monkeypatch.chdir(place)
    plain = [line for line in commands() if line.startswith("python scripts/predict.py ")]
    assert len(plain) == 3
    for line in plain:
        assert predict.main(shlex.split(line)[2:]) == 0
    answers = [json.loads(line) for line in (place / "from_lines/predictions.jsonl").read_text().splitlines()]
    assert [one.get("id") for one in answers] == ["first", None, None]
    assert Image.open(place / "named/masks/1_mask_1.png").size == (30, 21)


@pytest.mark.long
def test_the_launcher_of_the_page_runs(place, repository):
    (line,) = [line for line in commands() if line.startswith("torchrun")]
    for name in ("model", "utils", "scripts"):
        (place / name).symlink_to(repository / name)
    done = run(["bash", "-c", line], cwd=place)
    assert done.code == 0, done.text
    assert "4 images, 4 questions, 4 targets, 0 failed" in done.stdout
