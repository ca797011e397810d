"""The commands of docs/hardware.md and docs/gpu.md, as they stand there, on a small model and a small tree."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import chat
from scripts import benchmark, evaluate
from utils.cli.args import parse

COMMANDS = {"chat.py": chat.main, "scripts/evaluate.py": evaluate.main, "scripts/benchmark.py": benchmark.main}
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, GPU = ((DOCS / name).read_text(encoding="utf-8") for name in ("hardware.md", "gpu.md"))
LINES = re.findall(r"^    python (.*)$", PAGE, re.MULTILINE)

ON_A_GPU = re.findall(r"^(?:python|torchrun --nproc_per_node 2) scripts/benchmark\.py train (.*)$", GPU, re.MULTILINE)


def test_every_command_is_there():
    assert {line.split()[0] for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_a_command_runs(line, parrot, tiny_world, tmp_path, monkeypatch, capsys):
    shutil.copytree(parrot, tmp_path / "runs/toy/hf_model")
    shutil.copytree(tiny_world.dataset, tmp_path / "toy_world/dataset")
    shutil.copy(next(tiny_world.dataset.rglob("*.jpg")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    command, *flags = shlex.split(line)
    assert COMMANDS[command]([*flags, "--max_new_tokens=20"]) == 0
    assert capsys.readouterr().out


def test_what_needs_a_gpu_is_at_least_understood():
    assert len(ON_A_GPU) == 4
    for line in ON_A_GPU:
        assert parse(benchmark.TrainConfig, shlex.split(line), "").config.size in ("7b", "13b")
