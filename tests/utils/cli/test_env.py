"""What ``python -m utils.cli.env`` prints for a bug report."""

from __future__ import annotations

import getpass
import platform
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from utils.cli import env

pytestmark = pytest.mark.slow  # it asks git and the GPU driver
NAMES = ["pixellm", "commit", "python", "system", "cpus", "memory", "free disk", "processes", "torch", "gpus"]


@pytest.fixture
def printed(capsys) -> dict[str, str]:
    assert env.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_every_fact_has_a_line(printed):
    assert [name for name in printed if name in NAMES] == NAMES
    assert all(printed.values())
    assert printed["python"] == platform.python_version()
    assert printed["numpy"] == numpy.__version__
    assert printed["torch"].startswith(torch.__version__)


def test_the_commit_is_the_one_checked_out(repository, printed):
    if not (repository / ".git").exists():
        assert printed["commit"] == "no checkout"
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    commit, changes = printed["commit"].split(", ")
    assert len(commit) == 12
    assert head.stdout.startswith(commit)
    assert changes in ("with local changes", "no local changes")


def test_a_missing_library_is_said_to_be(monkeypatch, capsys):
    monkeypatch.setattr(env, "_LIBRARIES", ("numpy", "no-such-library"))
    assert env.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["no-such-library:", "not", "installed"]


def test_code_without_git_is_no_checkout(monkeypatch, tmp_path, capsys):
    """An installed copy may lie inside somebody else's checkout, whose commit is not ours."""
    monkeypatch.setattr(env, "_ROOT", tmp_path)
    env.main([])
    assert "no checkout" in capsys.readouterr().out


def test_gpus_are_named_with_their_memory(monkeypatch, printed, capsys):
    class Properties:
        name, total_memory = "Card X", 80 * 1024**3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(env, "_driver", lambda: "580.1")
    env.main([])
    out = " ".join(capsys.readouterr().out.split())
    assert "gpus: 2 driver: 580.1 gpu 0: Card X, 80.0 GiB gpu 1: Card X, 80.0 GiB" in out


def test_nothing_names_a_person_or_a_place(repository, printed):
    text = "\n".join(printed.values())
    for path in (repository, Path.home(), Path.cwd(), sys.prefix):
        assert str(path) not in text
    assert "/" not in text
    assert not {socket.gethostname(), getpass.getuser()} & set(text.replace(",", " ").split())


def test_launched_processes_are_counted(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    env.main([])
    assert "4 of the launcher, 2 on this machine" in capsys.readouterr().out
