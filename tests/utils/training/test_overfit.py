"""``--overfit_one_batch``: where it writes, what it refuses, and what it says in the end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.evaluation.metrics import IoUMeter
from utils.training.overfit import LEARNED, tell_result
from utils.training.run_data import open_val_sources
from utils.training.run_directory import RunDirectory


def test_a_check_has_a_folder_of_its_own():
    assert RunConfig(exp_name="mine", overfit_one_batch=True).run_dir == Path("runs/mine-overfit")
    assert RunConfig(exp_name="mine").run_dir == Path("runs/mine")


@pytest.mark.parametrize("flags", [{"eval_only": True}, {"resume": "runs/mine/ckpt_model"}, {"overwrite_run": True}])
def test_a_check_starts_afresh(flags):
    with pytest.raises(InputError, match=f"--overfit_one_batch starts from .*; leave --{next(iter(flags))} out"):
        RunConfig(overfit_one_batch=True, **flags)


def test_a_run_of_that_name_is_not_touched(tmp_path):
    (tmp_path / "mine-overfit/ckpt_model/global_step3").mkdir(parents=True)
    run = RunConfig(log_base_dir=str(tmp_path), exp_name="mine", overfit_one_batch=True)
    with pytest.raises(InputError, match=r"holds a run, but --overfit_one_batch writes into .*another --exp_name"):
        RunDirectory.of(run).check_start(run)


def test_a_check_needs_no_validation_set():
    assert open_val_sources(RunConfig(overfit_one_batch=True, val_dataset="ReasonSeg|nowhere")) == []


@pytest.mark.parametrize(
    ("meter", "says"),
    [
        (IoUMeter(iou_sum=9.5, num_pairs=10), "mask IoU 0.950 on 10 masks after 80 updates: this set-up learns"),
        (IoUMeter(iou_sum=10 * LEARNED, num_pairs=10), "a set-up that learns passes 0.9\n  It usually means: "),
        (IoUMeter(), "the batch holds no mask"),
    ],
)
def test_the_end_is_told(caplog, meter, says):
    with caplog.at_level(logging.INFO):
        tell_result(meter, updates=80, preview="python scripts/preview_data.py")
    (message,) = caplog.messages
    assert says in message
    assert ("Next: python scripts/preview_data.py" in message) == ("It usually means" in message)
