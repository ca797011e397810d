"""A command that is killed while it writes: nothing is lost, and the next one for the same target cleans up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model.outputs import check_output_folder, output_folder
from tests.support.snapshot import snapshot

KILLED = """
import os, signal, sys
from pathlib import Path
from model.outputs import output_folder
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
with output_folder(sys.argv[1], kind="merged model") as partial:
    (partial / "weights").write_text("new")
    if sys.argv[2] == "writing":
        die()
    rename = Path.rename
    Path.rename = lambda self, to: die() if self.name.endswith(".partial") else rename(self, to)
"""


def write(folder: Path, text: str) -> None:
    with output_folder(folder, kind="merged model") as partial:
        (partial / "weights").write_text(text)


@pytest.mark.parametrize("moment", ["writing", "between the renames"])
def test_after_a_kill_the_next_command_cleans_up(tmp_path, forks, moment):
    write(tmp_path / "hf", "old")
    before = snapshot(tmp_path)
    assert forks.python("-c", KILLED, tmp_path / "hf", moment).code != 0
    assert len(os.listdir(tmp_path)) == 2
    assert (tmp_path / "hf").exists() == (moment == "writing")
    check_output_folder(tmp_path / "hf", kind="merged model")
    assert snapshot(tmp_path) == before
    write(tmp_path / "hf", "new")
    assert os.listdir(tmp_path) == ["hf"]
