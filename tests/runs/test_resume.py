"""A run that is stopped goes on as if it had not been: same samples, same weights, same learning rate.

One plain process each, as ``python train_ds.py`` starts it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from tests.support.launch import TRAIN_FLAGS, Finished
from tests.support.tiny_data import IMAGES
from tests.support.tiny_world import TinyWorld

PARTS = ("ce", "bce", "dice", "refine", "masks", "lr")
# The same main(), whose process dies once update 3 stands in the log, after the checkpoint of update 2.
DIE_IN_UPDATE_3 = """
import os, sys
import train_ds
from utils.training.journal import JsonLines

write = JsonLines.write

def write_and_die(self, record):
    write(self, record)
    if record["update"] == 3:
        os._exit(9)

JsonLines.write = write_and_die
sys.exit(train_ds.main(sys.argv[1:]))
"""


class Trainings:
    """Starts runs in one folder of runs."""

    def __init__(self, world: TinyWorld, forks: ForkServer, runs: Path, *, optimizer: str) -> None:
        self.runs, self._forks = runs, forks
        own = ["--no_eval", "--workers=0", "--batch_size=2", f"--optimizer={optimizer}"]
        self.flags = [*world.arguments, *TRAIN_FLAGS, *own]

    def start(self, name: str, *flags: str, program: tuple[str, ...] = ("train_ds.py",)) -> tuple[Finished, list[dict]]:
        """One process; returns the records of the run's log, of earlier processes too."""
        where = [f"--log_base_dir={self.runs}", f"--exp_name={name}"]
        finished = self._forks.python(*program, *self.flags, *where, *flags)
        lines = (self.runs / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return finished, [json.loads(line) for line in lines]


@pytest.fixture(scope="module", params=["adamw", pytest.param("muon", marks=pytest.mark.long)])
def trainings(tiny_world: TinyWorld, forks: ForkServer, tmp_path_factory, request) -> Trainings:
    """``killed`` died in update 3; ``again`` is a copy of its folder."""
    trainings = Trainings(tiny_world, forks, tmp_path_factory.mktemp("runs"), optimizer=request.param)
    finished, log = trainings.start("killed", program=("-c", DIE_IN_UPDATE_3))
    assert finished.code == 9, finished.text
    assert [record["update"] for record in log] == [1, 2, 3]
    shutil.copytree(trainings.runs / "killed", trainings.runs / "again")
    return trainings


@pytest.fixture(scope="module")
def whole(trainings) -> list[dict]:
    """Four updates without a stop."""
    finished, log = trainings.start("whole", "--no_auto_resume")
    assert finished.code == 0, finished.text
    return log


@pytest.fixture(scope="module")
def resumed(trainings) -> tuple[Finished, list[dict]]:
    """The killed run, started again with the same command line."""
    return trainings.start("again")


def same(record: dict, other: dict) -> None:
    for name in PARTS:
        assert record[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, record, other)


def test_a_plain_process_trains(whole):
    assert [record["update"] for record in whole] == [1, 2, 3, 4]
    assert whole[-1]["total"] < whole[0]["total"]


def test_a_killed_run_goes_on_after_its_last_checkpoint(resumed):
    finished, log = resumed
    assert finished.code == 0, finished.text
    assert "after update 2" in finished.text
    assert [record["update"] for record in log] == [1, 2, 3, 3, 4]


def test_it_goes_on_as_if_it_had_not_been_stopped(whole, resumed):
    """Weights, optimizer, schedule and the stream of samples: any of them lost would show in update 3 or 4."""
    _, log = resumed
    for record, other in zip([*log[:2], *log[3:]], whole, strict=True):
        same(record, other)
    same(log[2], log[3])


def test_a_finished_run_says_so_and_a_longer_one_goes_on(trainings, resumed):
    finished, log = trainings.start("again")
    assert finished.code == 0
    assert "is complete (4 updates); nothing to train" in finished.text
    assert len(log) == 5
    finished, log = trainings.start("again", "--epochs=3", "--lr=0.0002", "--muon_lr=0.0002")
    assert finished.code == 0, finished.text
    assert [record["update"] for record in log[5:]] == [5, 6]
    # Warm-up of one update, then down to zero at update 6: the longer schedule, not the zero of the shorter one.
    assert [record["lr"] for record in log[5:]] == pytest.approx([2e-4 * 2 / 5, 2e-4 * 1 / 5])


def test_a_run_whose_validation_fails_keeps_its_checkpoint(world, forks, tmp_path):
    """Validation stops at a bad sample; the epoch before it is saved, and the mended run goes on from there."""
    missing = world.dataset / IMAGES / "train2017/12.jpg"
    photo = missing.read_bytes()
    missing.unlink()
    flags = [*world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=run", "--workers=0"]
    finished = forks.python("train_ds.py", *flags)
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert f"image {missing} does not exist" in error
    assert (tmp_path / "run/ckpt_model/latest").read_text().strip() == "global_step2"
    missing.write_bytes(photo)
    finished = forks.python("train_ds.py", *flags)
    assert finished.code == 0, finished.text
    assert "after update 2" in finished.text
    assert (tmp_path / "run/ckpt_model/latest").read_text().strip() == "global_step4"
