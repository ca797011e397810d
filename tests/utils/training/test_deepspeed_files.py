"""Checkpoints that DeepSpeed wrote are read as DeepSpeed reads them, and run nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from model.errors import InputError
from utils.training.checkpoints import open_step
from utils.training.parts import FROZEN
from utils.training.run_weights import join_weights, read_training_weights
from utils.training.steps import find_whole_step

STEP = "global_step2"
MODEL, OPTIM = "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_optim_states.pt"


@pytest.fixture
def folder(kept_runs, tmp_path) -> Path:
    """The ckpt_model of a run of two processes under ZeRO-2."""
    return Path(shutil.copytree(kept_runs / "before/ckpt_model", tmp_path / "ckpt_model"))


def test_weights_are_those_that_deepspeed_puts_together(folder):
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    expected = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    found = read_training_weights(folder)
    assert expected is not None
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_moments_belong_to_their_weights(folder):
    """AdamW's second moment is zero only where no gradient ever was, and has the shape of its weight."""
    stored = open_step(folder / STEP)
    assert stored.progress.update == stored.progress.optimizer_steps == stored.progress.schedule_steps == 2
    for name in stored.weights["trained"]:
        weight, *moments = (stored.read(kind, name) for kind in ("master", "exp_avg", "exp_avg_sq"))
        assert all(moment.shape == weight.shape for moment in moments), name
        assert (moments[1] >= 0).all(), name
        assert ((moments[0] == 0) | (moments[1] > 0)).all(), name
    rows = stored.read("exp_avg_sq", "base_model.model.lm_head.weight").sum(1)
    assert (rows > 0).any()
    assert stored.random_state("cpu/0") is None


class Payload:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("name", [MODEL, OPTIM.format(0), OPTIM.format(1)])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before-zip"])
def test_a_planted_payload_is_refused_by_name_and_does_not_run(folder, name, old, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    file = folder / STEP / name
    content = torch.load(file, weights_only=False)
    torch.save({"payload": Payload(), **content}, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match=r"was refused: it would run posix\.system|is cut off") as refused:
        read_training_weights(folder)
    assert name in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_objects_of_deepspeed_are_data_here(folder):
    """The few classes that its files name are replaced: even their own code does not run."""
    stored = open_step(folder / STEP)
    assert type(stored._optim[0]["loss_scaler"]).__module__ == "utils.training.deepspeed_files"
    assert type(stored._optim[0]["zero_stage"]) is int


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def edit(file: Path, **changes: object) -> None:
    content = torch.load(file, weights_only=False)
    torch.save({**content, **changes}, file)


DAMAGES = {
    "the model states are missing": (lambda step: (step / MODEL).unlink(), "it has no manifest.json"),
    "the model states are empty": (lambda step: (step / MODEL).write_bytes(b""), f"{MODEL} is cut off or empty"),
    "the model states are cut": (lambda step: cut(step / MODEL), f"{MODEL} is cut off or empty"),
    "the first process's part is missing": (
        lambda step: (step / OPTIM.format(0)).unlink(),
        "the optim states of process 0 are missing",
    ),
    "the last process's part is missing": (
        lambda step: (step / OPTIM.format(1)).unlink(),
        "has optimizer states of 1 processes, not 2",
    ),
    "a part is cut": (lambda step: cut(step / OPTIM.format(1)), "is cut off or empty"),
    "a part is a copy of another's": (
        lambda step: shutil.copy(step / OPTIM.format(0), step / OPTIM.format(1)),
        "of one process under the names of two",
    ),
    "the model states are a list": (lambda step: torch.save([1], step / MODEL), "holds a list"),
    "the model states lack the shapes": (lambda step: edit(step / MODEL, param_shapes=None), "damaged"),
    "the optimizer states are numbers": (
        lambda step: edit(step / OPTIM.format(0), optimizer_state_dict=3),
        "damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_in_one_line(folder, damage):
    spoil, says = DAMAGES[damage]
    spoil(folder / STEP)
    with pytest.raises(InputError, match=says) as refused:
        read_training_weights(folder)
    assert STEP in str(refused.value)
    assert "\n" not in str(refused.value)


def test_from_the_checkpoint_of_another_program_no_run_goes_on(folder):
    """The release's say nothing of its updates; their weights are read all the same."""
    file = folder / STEP / MODEL
    content = torch.load(file, weights_only=False)
    torch.save({name: value for name, value in content.items() if name not in ("update", "images_per_update")}, file)
    stored = open_step(folder / STEP)
    with pytest.raises(InputError, match=r"was not written by this code.*start from the merged model with --init_from"):
        assert stored.progress
    assert join_weights(stored)


def test_a_step_that_is_cut_is_passed_over(folder):
    shutil.copytree(folder / STEP, folder / "global_step4")
    (folder / "latest").write_text("global_step4")
    cut(folder / "global_step4" / MODEL)
    assert find_whole_step(folder) == folder / STEP


def test_frozen_weights_come_along(folder):
    stored = open_step(folder / STEP)
    names = set(stored.weights["frozen"])
    assert all(any(part in name for name in names) for part in ("vision_tower", "positional_encoding"))
    weights = join_weights(stored)
    assert all(torch.equal(weights[name], stored.read(FROZEN, name)) for name in names)
