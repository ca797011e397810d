"""How to ask, in README and docs/inference.md: what stands there runs as it stands there, with a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.fork_server import ForkServer

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CHAPTER = README.split("\n## Ask about your own photos\n")[1].split("\n## ")[0]
PAGE = (REPOSITORY / "docs/inference.md").read_text(encoding="utf-8")
# Runs in a fork: in the folder that the page is read in, without a terminal.
_COMMAND = """
import os, runpy, sys
os.chdir({place!r})
sys.stdin = open(os.devnull)
sys.argv = {words!r}
runpy.run_path({script!r}, run_name="__main__")
"""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Words of each, without ``python``."""
    lines = [line for block in blocks(CHAPTER, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture
def place(parrot, tmp_path) -> Path:
    """What the page names: a model, a photo, a folder of photos."""
    shutil.copytree(parrot, tmp_path / "runs/pixellm-7b/hf_model")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        Image.linear_gradient("L").resize((640, 480)).save(tmp_path / name)
    return tmp_path


def test_the_commands_run(forks: ForkServer, place: Path):
    assert [words[0] for words in commands()] == ["chat.py", "chat.py", "scripts/predict.py"]
    said = []
    for words in commands():
        done = forks.python("-c", _COMMAND.format(place=str(place), words=words, script=str(REPOSITORY / words[0])))
        assert done.code == 0, done.text
        said.append(done.stdout)
    assert said[0] == "Please input your prompt: "
    assert "text_output: the thing is [0]" in said[1]
    answer = json.loads((place / "answer.json").read_text(encoding="utf-8"))
    assert [target["phrase"] for target in answer["targets"]] == ["thing"]
    assert {path.name for path in (place / "vis_output").iterdir()} == {
        "photo_mask_0.jpg", "photo_masked_img_0.jpg", "photo_mask_0.png", "photo_targets.png",
    }  # fmt: skip
    assert "2 images, 2 questions, 2 targets, 0 failed" in said[2]
    assert (place / "predictions/annotations.json").is_file()


def test_the_python_blocks_run(forks: ForkServer, place: Path):
    checks = """
assert len(annotations) == len(more.targets) == 1
assert Image.open("masks/photo_mask_0.png").size == Image.open("photo.jpg").size
assert [target.phrase for target in named.targets] == ["the cat", "a red cup"]
"""
    shown = [*blocks(CHAPTER, "python"), *blocks(PAGE, "python")]
    code = "\n".join([f"import os; os.chdir({str(place)!r})\nfrom PIL import Image", *shown, checks])
    done = forks.python("-c", code)
    assert done.code == 0, done.text
    assert "the thing is [SEG0] [SEG1] [('thing', torch.Size([480, 640]), 0." in done.stdout
    assert "the thing is [0] ['thing']" in done.stdout
