"""Bad input that only training itself meets, or that every process meets."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS, deepspeed
from tests.support.tiny_data import IMAGES


def test_through_the_launcher_the_message_appears_once(tiny_world, repository, tmp_path):
    """Every process meets this error; rank 0 speaks for all."""
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path / 'runs'}", "--version=/nowhere/llava"]
    finished = deepspeed("train_ds.py", *flags, cwd=repository)
    assert finished.code == 2, finished.text
    assert len(finished.errors) == 1
    assert "--version /nowhere/llava: no such folder" in finished.errors[0]
    assert "Traceback" not in finished.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_too_many_bad_samples_on_one_process_stop_all(world, forks, tmp_path):
    """The others would wait for it, or die of a broken connection with a traceback."""
    missing = world.dataset / IMAGES / "train2017/11.jpg"
    missing.unlink()
    flags = [*world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path / 'runs'}", "--epochs=50", "--no_eval"]
    finished = forks.python("train_ds.py", *flags, "--max_bad_share=0.002", processes=NUM_PROCESSES)
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert re.search(r"3 of \d+ samples cannot be used, more than --max_bad_share 0.002 allows", error)
    assert f"multi_reason_seg: image missing 3. The last of them: image {missing} does not exist" in error
    assert "Traceback" not in finished.text


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_a_few_bad_samples_are_skipped_and_counted(world, forks, tmp_path):
    """Loader workers of every process meet them; the log has the sum."""
    (world.dataset / IMAGES / "train2017/11.jpg").unlink()
    flags = [*world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=run", "--no_eval"]
    longer = ["--epochs=1", "--steps_per_epoch=6", "--workers=2"]
    finished = forks.python("train_ds.py", *flags, *longer, processes=NUM_PROCESSES)
    assert finished.code == 0, finished.text
    assert "samples that cannot be used: multi_reason_seg: image missing" in finished.text
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    (skipped,) = [record["skipped"] for record in log if "skipped" in record]
    assert [(entry["source"], entry["reason"]) for entry in skipped] == [("multi_reason_seg", "image missing")]
    assert 1 <= skipped[0]["count"] < 24


def test_a_polygon_without_area_is_named_by_its_sample(world, forks, tmp_path):
    path = world.dataset / "muse/muse_train.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records:
        for target in (target for targets in record["answers"] for target in targets):
            target["segmentation"] = [[5, 5, 9, 9, 7, 7]]
    path.write_text(json.dumps(records), encoding="utf-8")
    flags = [*world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path / 'runs'}", "--exp_name=x"]
    only_muse = ["--dataset=multi_reason_seg", "--sample_rates=1", "--no_eval"]
    finished = forks.python("train_ds.py", *flags, *only_muse)
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert "multi_reason_seg/" in error
    assert "encloses no area; correct or remove the annotation" in error
    assert "Traceback" not in finished.text
    assert not (tmp_path / "runs/x/ckpt_model").exists()


def test_a_loss_that_is_not_finite_is_passed_over_as_often_as_allowed_and_then_stops(tiny_world, forks, tmp_path):
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, f"--log_base_dir={tmp_path}", "--exp_name=x", "--no_eval"]
    finished = forks.python(
        "train_ds.py", *flags, "--lr=1e30", "--workers=0", "--skip_nonfinite=1", "--steps_per_epoch=4"
    )
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert (
        "update 2 is passed over (1 of --skip_nonfinite 1): the loss is nan in update 2, at samples " in finished.text
    )
    assert "the loss is nan in update 3, at samples " in error
    assert "the gradient of base_model.model." in error
    assert "Lower --lr" in error
    assert "Traceback" not in finished.text
    log = [json.loads(line) for line in (tmp_path / "x/log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(record["update"], record["total"] is None) for record in log] == [(1, False), (2, True)]
