"""docs/tutorial.ipynb runs: every cell with a model that says one sentence, and all of it with a trained one."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from model.files import read_object
from model.weights.tensors import read_weights
from tests.support.bad_input import edit_json
from tests.support.launch import run
from tests.support.notebook import edited, execute, read
from tests.support.tiny_world import write_settings
from tests.support.toy_model import CODE, TOY_MODEL

# Of the model that says one sentence, a layer is 16 wide.
_SMALL = ("--print_freq 20", "--print_freq 20 --lora_r 8 --lora_alpha 8")
# The working folder is another one than the test's own.
_IN_FOLDER = """
import os, runpy, sys
os.chdir(sys.argv[1])
sys.path[0] = ""
sys.argv = sys.argv[2:]
if sys.argv[0] == "-m":
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def place(tmp_path, repository) -> Path:
    """A folder with the code of the repository, where the notebook runs."""
    for name in CODE:
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "docs").mkdir()
    return tmp_path


def run_bash(cell: str, place: Path, forks: Any) -> None:
    """A cell of command lines; Python programs start where the libraries are imported already."""
    for line in cell.replace("\\\n", " ").splitlines()[1:]:
        command = shlex.split(os.path.expandvars(line.rpartition("|| ")[2]))
        if command[0] == "python":
            done = forks.python("-c", _IN_FOLDER, place, *command[1:])
            assert done.code == 0, done.text
        else:
            subprocess.run(command, cwd=place, check=True)


def write_model(folder: Path, parrot: Path) -> None:
    """The model that says one sentence as a trained one lies on disk: its tower in a folder that it names."""
    shutil.copytree(parrot, folder)
    tower = folder.parent / "tower"
    config, weights = read_object(folder / "config.json"), read_weights(folder)
    state = {name.rpartition("vision_tower.")[2]: tensor for name, tensor in weights.items() if "vision_tower." in name}
    tower.mkdir()
    named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in state.items()}
    torch.save(named, tower / "pytorch_model.bin")
    write_settings(tower, {**config["vision_config"], "architectures": ["CLIPVisionModel"]})
    edit_json(folder / "config.json", vision_tower=str(tower))


def test_every_cell_runs(place, parrot, forks, monkeypatch):
    """In this process, as a kernel would take seconds to import everything again."""
    write_model(place / "runs/toy/hf_model", parrot)
    monkeypatch.chdir(place / "docs")
    monkeypatch.setattr(os, "environ", os.environ.copy())
    names: dict[str, Any] = {}
    for cell in read().cells:
        if cell.cell_type == "code":
            source = edited(cell.source, {"PHOTOS": "8", "UPDATES": "1"}).replace(*_SMALL)
            if source.startswith("%%bash"):
                run_bash(source, place, forks)
            else:
                exec(compile(source, "<cell>", "exec"), names)
    assert Path.cwd() == place
    assert names["UPDATES"] == 1
    assert all(word for word in names["words"])
    for name in ("before", "after"):
        assert (place / "runs/my-photos" / name / "report.html").is_file()


@pytest.mark.long
def test_the_notebook_ends_in_a_better_model(place):
    """In a kernel, and with a model that has been trained for a while."""
    for line in TOY_MODEL:
        done = run(["bash", "-c", line], cwd=place, timeout=600)
        assert done.code == 0, done.text
    notebook = execute(read(), place)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    scores = [
        json.loads((place / "runs/my-photos" / name / "results.json").read_text(encoding="utf-8"))["results"][0]
        for name in ("before", "after")
    ]
    before, after = (score["scores"]["all"] for score in scores)
    assert before["num_questions"] == after["num_questions"] == 19
    assert after["right_count"] > before["right_count"]
    assert after["giou"] > 0.25
