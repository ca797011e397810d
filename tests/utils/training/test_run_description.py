"""What describes weights: their own checkpoint, else the last whole one of the run, else the run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.training.run_description import RunDescription, is_moved, log_changes, refuse_changes


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory whose second checkpoint is the last whole one."""
    run = tmp_path / "runs/x"
    for folder in (run, run / "ckpt_model/global_step2", run / "ckpt_model/global_step4"):
        RunDescription(folder).write_flags(RunConfig())
    (run / "ckpt_model/global_step10").mkdir()
    (run / "ckpt_model/latest").write_text("global_step4\n")
    return run


@pytest.mark.parametrize(
    ("weight", "described_by"),
    [
        (".", "ckpt_model/global_step4"),
        ("pytorch_model.bin", "ckpt_model/global_step4"),
        ("shards/pytorch_model-1.bin", "ckpt_model/global_step4"),
        ("a/b/model.bin", "ckpt_model/global_step4"),
        ("ckpt_model", "ckpt_model/global_step4"),
        ("ckpt_model/global_step4", "ckpt_model/global_step4"),
        ("ckpt_model/global_step2", "ckpt_model/global_step2"),
        ("ckpt_model/global_step10", "."),  # of a version that did not describe its checkpoints
    ],
)
def test_weights_are_described_by_their_checkpoint(run, weight, described_by):
    found = RunDescription.of_weight(run / weight)
    assert found is not None
    assert found.folder == (run / described_by).resolve()


def test_an_older_run_is_described_by_its_directory(run):
    (run / "ckpt_model/global_step4/run_config.json").unlink()
    for weight in ("ckpt_model", "ckpt_model/global_step4", "pytorch_model.bin"):
        found = RunDescription.of_weight(run / weight)
        assert found is not None
        assert found.folder == run.resolve()


def test_a_checkpoint_may_leave_its_run(run, tmp_path):
    moved = (run / "ckpt_model").rename(tmp_path / "moved")
    found = RunDescription.of_weight(moved)
    assert found is not None
    assert found.folder == (moved / "global_step4").resolve()


def test_weights_may_lie_in_no_run_directory(run):
    assert RunDescription.of_weight(run.parent / "pytorch_model.bin") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [({"shade": 1}, "has unknown keys shade; was it edited"), ({"lora_r": None}, "--lora_r is None; expected")],
)
def test_damaged_flags_are_refused_with_the_file(run, change, says):
    description = RunDescription(run)
    values = json.loads(description.flags_file.read_text(encoding="utf-8"))
    description.flags_file.write_text(json.dumps(values | change), encoding="utf-8")
    with pytest.raises(InputError, match=says) as error:
        description.read_flags()
    assert str(description.flags_file) in str(error.value)


def test_whole_numbers_of_json_are_numbers(run):
    description = RunDescription(run)
    values = json.loads(description.flags_file.read_text(encoding="utf-8"))
    description.flags_file.write_text(json.dumps(values | {"refine_alpha": 2, "ce_loss_weight": 1}), encoding="utf-8")
    assert description.read_flags() == RunConfig()


def test_flags_that_are_older_than_a_flag_mean_what_was_done_then(run):
    """Before there was --loss_normalization, losses were normalized locally."""
    description = RunDescription(run)
    values = json.loads(description.flags_file.read_text(encoding="utf-8"))
    assert description.read_flags().loss_normalization == values.pop("loss_normalization") == "global"
    description.flags_file.write_text(json.dumps(values), encoding="utf-8")
    assert description.read_flags() == RunConfig(loss_normalization="local")


def test_a_resumed_run_says_that_its_losses_are_normalized_otherwise(caplog):
    with caplog.at_level("INFO"):
        log_changes(RunConfig(loss_normalization="local"), RunConfig())
    assert "changed since the checkpoint: --loss_normalization 'global' (was 'local')" in caplog.text


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ("gone/a.jsonl", "here/a.jsonl", True),
        ("gone/a.jsonl||here/b.jsonl", "here/a.jsonl||here/b.jsonl", True),
        ("here/a.jsonl", "./here/a.jsonl", True),
        ("here/a.jsonl", "there/a.jsonl", False),  # the one of then is still there: another is meant
        ("gone/a.jsonl", "here/b.jsonl", False),
        ("gone/a.jsonl", "gone/too/a.jsonl", False),
        ("gone/a.jsonl", "here/a.jsonl||here/b.jsonl", False),
        ("", "here/a.jsonl", False),
        ("owner/a.jsonl", "here/a.jsonl", True),  # a hub name, and a copy of it
        ("owner/a.jsonl", "owner/a.jsonl", True),
        ("gone/a.jsonl", "n" * 5000, False),
    ],
)
def test_what_a_flag_names_may_have_moved(tmp_path, monkeypatch, before, now, same):
    for name in ("here/a.jsonl", "here/b.jsonl", "there/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    assert is_moved("custom_data", before, now) is same
    for flag in ("custom_data", "preprocessor_config"):
        runs = (RunConfig(**{flag: place}) for place in (before, now))
        if same:
            refuse_changes(*runs, checkpoint=tmp_path)
        else:
            with pytest.raises(InputError, match=f"--{flag} is"):
                refuse_changes(*runs, checkpoint=tmp_path)


def test_a_flag_that_names_no_place_may_not_change(tmp_path):
    with pytest.raises(InputError, match="--dataset is"):
        refuse_changes(RunConfig(dataset="a"), RunConfig(dataset="b"), checkpoint=tmp_path)


def test_a_model_is_known_by_its_weights_and_may_have_another_name(tmp_path):
    (tmp_path / "here").mkdir()
    assert is_moved("init_from", str(tmp_path / "gone"), str(tmp_path / "here"))
    assert not is_moved("init_from", str(tmp_path), str(tmp_path / "here"))
    assert not is_moved("init_from", "", str(tmp_path / "here"))
