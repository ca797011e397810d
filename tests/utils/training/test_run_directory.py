"""The run directory: found above a weight file, and what it says of its checkpoints and flags."""

from __future__ import annotations

import json

import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.training.checkpoints import step_names
from utils.training.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs/x")
    directory.write_flags(RunConfig())
    (directory.checkpoints / "global_step2").mkdir(parents=True)
    return directory


@pytest.mark.parametrize("weight", [".", "pytorch_model.bin", "ckpt_model", "ckpt_model/global_step2", "a/b/model.bin"])
def test_it_is_found_above_a_weight(directory, weight):
    found = RunDirectory.above(directory.path / weight)
    assert found is not None
    assert found.path.resolve() == directory.path.resolve()


def test_a_weight_may_lie_in_no_run_directory(directory):
    assert RunDirectory.above(directory.path.parent / "pytorch_model.bin") is None


def test_steps_are_in_order_of_their_numbers(directory):
    (directory.checkpoints / "global_step10").mkdir()
    assert step_names(directory.checkpoints) == ["global_step2", "global_step10"]
    assert step_names(directory.path / "nothing") == []


def test_unknown_flags_are_refused_by_name(directory):
    values = json.loads(directory.flags_file.read_text(encoding="utf-8"))
    directory.flags_file.write_text(json.dumps({**values, "shade": 1}), encoding="utf-8")
    with pytest.raises(InputError, match="has unknown keys shade; was it edited"):
        directory.read_flags()
