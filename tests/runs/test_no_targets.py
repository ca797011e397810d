"""Photos without any target: processes that have masks and processes that have none train and validate together.

A decoder that is skipped on one process leaves the others waiting: for its gradients, and under ZeRO-3 for its weights.
"""

from __future__ import annotations

import json

import pytest

from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS
from tests.support.tiny_data import make_object, make_record, write_muse
from tests.support.tiny_world import TinyWorld


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), 3])
@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_processes_with_and_without_targets_train_together(tiny_world: TinyWorld, forks, tmp_path, stage):
    """The validation set has one sample, so that a process has none of it."""
    records = [
        make_record(1, [("Who drinks?", [make_object(3, "the cup")], "One drinks from {seg}.")]),
        make_record(2, [("What is there?", [], "Nothing is there.")]),
    ]
    write_muse(tmp_path, "train", records)
    write_muse(tmp_path, "val", records[:1])
    zero = tmp_path / "zero.json"
    zero.write_text(json.dumps({"zero_optimization": {"stage": stage}}), encoding="utf-8")
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=run"]
    changes = ["--dataset=multi_reason_seg", "--sample_rates=1", "--grad_accumulation_steps=1", "--steps_per_epoch=12"]
    own = [f"--dataset_dir={tmp_path}", "--epochs=1", "--precision=bf16", f"--deepspeed_config={zero}"]
    finished = forks.python("train_ds.py", *flags, *changes, *own, processes=2)
    assert finished.code == 0, finished.text
    *log, validation = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text("utf-8").splitlines()]
    assert 0 <= validation["giou"] <= 1
    assert [record["update"] for record in log] == list(range(1, 13))
    assert {record["masks"] for record in log} == {0, 1, 2}, "no process, one of them, and both have a target"
    for record in log:
        assert (record["bce"] > 0) == (record["dice"] > 0) == (record["masks"] > 0)
