"""Several processes evaluate as one: they agree on a precision, one of them speaks, and any number goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

# Runs the command, and is killed as soon as the disk holds so many lines of all processes.
_KILLED = """
import os, signal, sys
from scripts import evaluate
from utils.evaluation import run
append, most = run.append, int(sys.argv.pop())
def write(folder, records, *, rank):
    append(folder, records, rank=rank)
    if sum(file.read_bytes().count(b"\\n") for file in folder.glob("predictions*.jsonl")) >= most:
        os.kill(os.getpid(), signal.SIGKILL)
run.append = write
sys.argv[0] = "scripts/evaluate.py"
evaluate.main(sys.argv[1:])
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")
def test_processes_agree_on_a_precision_and_on_what_is_bad(forks, parrot, tiny_world, tmp_path):
    flags = [f"--dataset_dir={tiny_world.dataset}", "--max_new_tokens=20", "--limit=2", "--precision=auto"]
    output = f"--output_dir={tmp_path / 'out'}"
    command = ("scripts/evaluate.py", *flags, output)
    finished = forks.python(*command, f"--version={parrot}", processes=2)
    assert finished.code == 0, finished.text
    assert finished.text.count("--precision auto: fp32, because") == 1
    results = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert results["settings"]["config"]["precision"] == "fp32"
    refused = forks.python(*command, "--version=/nowhere/model", processes=2)
    assert refused.code == 2
    assert len(refused.errors) == 1


def rows(output: Path) -> list[dict]:
    return json.loads((output / "results.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")
def test_one_process_ends_what_two_began_and_finds_what_it_finds_alone(forks, parrot, tiny_world, tmp_path):
    out = tmp_path / "out"
    flags = [f"--version={parrot}", f"--dataset_dir={tiny_world.dataset}", "--max_new_tokens=20", "--precision=fp32"]
    flags += ["--benchmark=MultiReasonSeg|val||refcoco|unc|val", f"--output_dir={out}"]

    def finished(name: str, *more: str, processes: int = 1) -> Path:
        done = forks.python("scripts/evaluate.py", *flags, *more, processes=processes)
        assert done.code == 0, done.text
        return Path(shutil.move(out, tmp_path / name))

    alone = finished("alone", "--batch_size=2")
    together = finished("together", "--batch_size=2", processes=2)
    killed = forks.python("-c", _KILLED, *flags, "--batch_size=2", "3", processes=2)
    assert killed.code, killed.text
    assert list(out.glob("predictions*.jsonl"))
    assert not (out / "results.json").exists()
    continued = finished("continued", "--batch_size=2")
    for name in ("predictions.jsonl", "results.json"):
        for other in (together, continued):
            assert (other / name).read_bytes() == (alone / name).read_bytes(), f"{other.name}/{name}"
    at_once = finished("at_once", "--batch_size=8", processes=2)
    for mine, theirs in zip(rows(alone), rows(at_once), strict=True):
        assert mine.keys() == theirs.keys()
        for group, scores in mine["scores"].items():
            for metric, value in scores.items():
                assert theirs["scores"][group][metric] == pytest.approx(value, abs=1e-4), f"{group}, {metric}"
