"""A run of two processes that cannot learn: ``--overfit_one_batch`` repeats its batch and says so, guards warn once."""

from __future__ import annotations

import json

import pytest

from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS, Finished
from tests.support.tiny_world import TinyWorld
from utils.training.guards import WINDOW_UPDATES
from utils.training.overfit import NAME

# Two epochs; the window is full some updates before the schedule ends.
UPDATES = WINDOW_UPDATES + 6

pytestmark = [pytest.mark.long, pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(tiny_world: TinyWorld, forks, folder) -> Finished:
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={folder}", "--exp_name=run", "--overfit_one_batch"]
    own = ["--lr=1e-12", "--batch_size=2", "--grad_accumulation_steps=1", "--activation_checkpointing=never"]
    return forks.python("train_ds.py", *flags, *own, f"--steps_per_epoch={UPDATES // 2}", processes=NUM_PROCESSES)


@pytest.fixture(scope="module")
def log(finished, folder) -> list[dict]:
    assert finished.code == 0, finished.text
    return [json.loads(line) for line in (folder / "run-overfit/log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_update_sees_the_same_batch(log):
    updates = [record for record in log if "tokens" in record]
    assert len(updates) == UPDATES
    assert len({(record["masks"], record["tokens"]) for record in updates}) == 1
    assert all(record["tokens"] > 0 <= record["blank_masks"] <= record["masks"] > 0 for record in updates)
    first, last = updates[0]["total"], updates[-1]["total"]
    assert first == pytest.approx(last, rel=1e-4), "at this rate no weight moves"


def test_the_batch_is_scored_after_each_epoch_and_not_learned(finished, log):
    scores = [record["giou"] for record in log if record.get("val") == NAME]
    assert len(scores) == 2
    assert all(0 <= score < 0.9 for score in scores)
    assert finished.text.count("a set-up that learns passes 0.9") == 1


def test_nothing_is_kept(log, folder):
    names = {path.name for path in (folder / "run-overfit").iterdir()}
    assert "ckpt_model" not in names
    assert not (folder / "run").exists()


def test_the_rate_is_warned_of_once_and_nothing_else(finished):
    assert finished.text.count("the learning rate was at most 1.0e-12") == 1
    for other in ("no supervised token", "no mask in", "show nothing", "vision tower"):
        assert other not in finished.text
