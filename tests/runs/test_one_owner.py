"""A run directory has one owner, and tells a merge the truth about its checkpoint; real processes, some killed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import merge_lora_weights_and_save_hf_model as merge
from model.weights.tensors import read_weights
from tests.support.bad_input import edit_json
from tests.support.fork_server import ForkServer
from tests.support.launch import TRAIN_FLAGS, Finished, start
from tests.support.other_host import OTHER_HOST
from utils.training.run_weights import read_training_weights

# The same main(), which does something once update 3 stands in the log, after the checkpoint of update 2.
_IN_UPDATE_3 = """
import os, sys, time
from pathlib import Path
import train_ds
from utils.training.journal import JsonLines

write = JsonLines.write

def write_and_act(self, record):
    write(self, record)
    if record["update"] == 3:
        {act}

JsonLines.write = write_and_act
sys.exit(train_ds.main(sys.argv[1:]))
"""
STAND_STILL = _IN_UPDATE_3.format(act="time.sleep(600)")
INTERRUPT = _IN_UPDATE_3.format(act="raise KeyboardInterrupt")
LOSE_THE_LOCK = _IN_UPDATE_3.format(
    act='lock = Path(self._file.name).with_name("run.lock"); '
    'lock.write_text(lock.read_text().replace(str(os.getpid()), "7", 1))'
)


class Runs:
    """Starts runs in one folder of runs, always with the same flags."""

    def __init__(self, folder: Path, flags: list[str], forks: ForkServer, repository: Path) -> None:
        self.folder, self.repository, self._forks = folder, repository, forks
        self.flags = [*flags, *TRAIN_FLAGS, "--no_eval", "--workers=0", f"--log_base_dir={folder}"]

    def train(
        self, name: str, *flags: str, program: tuple[str, ...] = ("train_ds.py",), processes: int = 1
    ) -> Finished:
        return self._forks.python(*program, *self.flags, f"--exp_name={name}", *flags, processes=processes)

    def copy(self, name: str, to: str) -> Path:
        return Path(shutil.copytree(self.folder / name, self.folder / to))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(finished: Finished, *says: str) -> None:
    assert finished.code == 2, finished.text
    assert "Traceback" not in finished.text
    (error,) = finished.errors
    for part in says:
        assert part in error


@pytest.fixture(scope="module")
def runs(tiny_world, forks, repository, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_world.arguments, forks, repository)


@pytest.fixture(scope="module")
def living(runs) -> Iterator[subprocess.Popen[str]]:
    """A run that stands still in update 3; killed at the latest at the end."""
    process = start([sys.executable, "-c", STAND_STILL, *runs.flags, "--exp_name=x"], cwd=runs.repository)
    log, deadline = runs.folder / "x/log.jsonl", time.time() + 120
    while not (log.is_file() and '"update": 3' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def second(runs, living) -> Finished:
    """A second training of the same name; every byte of the first one's is still there."""
    before = contents(runs.folder / "x")
    finished = runs.train("x")
    assert contents(runs.folder / "x") == before
    return finished


@pytest.fixture(scope="module")
def killed(runs, living, second) -> Path:
    """The run directory that ``kill -9`` left behind."""
    living.kill()
    living.wait()
    assert (runs.folder / "x/run.lock").is_file()
    return runs.folder / "x"


def test_of_two_trainings_of_one_name_one_trains(living, second):
    refused(second, f"in use by process {living.pid} on {socket.gethostname()} since ", "another --exp_name")


def test_a_killed_run_is_taken_over_and_goes_on(runs, killed):
    run = runs.copy("x", "again")
    finished = runs.train("again")
    assert finished.code == 0, finished.text
    assert f"took over run directory {run}: process " in finished.text
    assert "after update 2" in finished.text
    assert not (run / "run.lock").exists()
    steps = [path.name for path in (run / "ckpt_model").glob("global_step*")]
    assert sorted(steps) == ["global_step2", "global_step4"]
    assert json.loads((run / "ckpt_model/global_step4/run_config.json").read_text())["lora_alpha"] == 16


def merged(weight: Path, to: Path) -> dict[str, torch.Tensor]:
    assert merge.main([f"--weight={weight}", f"--save_path={to}", "--precision=fp32"]) == 0
    return read_weights(to)


def test_a_start_that_never_saved_does_not_change_what_a_merge_gives(runs, killed, tmp_path):
    run = runs.copy("x", "told")
    (run / "run.lock").unlink()
    expected, before = merged(run / "ckpt_model", tmp_path / "expected"), contents(run)
    refused(runs.train("told", "--no_auto_resume", "--lora_alpha=640"), "--no_auto_resume would replace")
    refused(runs.train("told", "--lora_alpha=640"), "--lora_alpha is 640, but", "was trained with 16")
    assert contents(run) == before
    # What an earlier version's start did to the run directory says nothing about a checkpoint that describes itself.
    edit_json(run / "run_config.json", lora_alpha=640)
    torch.save(read_training_weights(run / "ckpt_model"), run / "pytorch_model.bin")
    for number, weight in enumerate(("ckpt_model", "ckpt_model/global_step2", "pytorch_model.bin")):
        found = merged(run / weight, tmp_path / str(number))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), weight


def test_an_overwritten_run_stands_aside_and_an_interrupted_one_is_free(runs, killed):
    run = runs.copy("x", "over")
    (run / "run.lock").unlink()
    before = contents(run)
    finished = runs.train("over", "--overwrite_run", "--lora_alpha=640", program=("-c", INTERRUPT))
    assert "KeyboardInterrupt" in finished.text
    assert f"the earlier run is now {run}.old-1" in finished.text
    assert contents(runs.folder / "over.old-1") == before
    assert not (run / "run.lock").exists()
    flags = json.loads((run / "ckpt_model/global_step2/run_config.json").read_text())
    assert (flags["lora_alpha"], flags["overwrite_run"]) == (640, False)


def test_a_run_that_was_taken_over_stops_at_its_next_save(runs):
    finished = runs.train("lost", program=("-c", LOSE_THE_LOCK))
    refused(finished, "was taken over by process 7 on ", "stops without saving")
    folder = runs.folder / "lost"
    assert (folder / "ckpt_model/latest").read_text() == "global_step2"
    assert not (folder / "ckpt_model/global_step4").exists()
    assert json.loads((folder / "run.lock").read_text())["pid"] == 7


def test_harmless_changes_and_foreign_steps_are_said(runs, killed):
    run = runs.copy("x", "longer")
    (run / "ckpt_model/global_step9").mkdir()
    finished = runs.train("longer", "--lr=0.0001", "--epochs=2", "--num_classes_per_sample=3")
    assert finished.code == 0, finished.text
    assert finished.text.count("changed since the checkpoint: --lr 0.0001 (was 0.0003)\n") == 1
    assert "goes on with global_step2; it also holds global_step9" in finished.text
    steps = sorted(path.name for path in (run / "ckpt_model").glob("global_step*"))
    assert steps == ["global_step2", "global_step4", "global_step9"]


def test_two_processes_are_refused_with_one_line(runs):
    """Only the main process looks at the lock; the other one is stopped, as launchers do."""
    folder = runs.folder / "elsewhere"
    folder.mkdir()
    (folder / "run.lock").write_text(json.dumps(OTHER_HOST))
    before = contents(folder)
    finished = runs.train("elsewhere", processes=2)
    assert finished.code != 0
    (error,) = finished.errors
    assert "in use by process 7 on elsewhere since 2026-01-02" in error
    assert contents(folder) == before
