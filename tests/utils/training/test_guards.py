"""When a run is told that it does not learn, and that healthy runs are left in peace."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train_ds
from model.structures import Batch
from scripts.preview_data import PreviewConfig
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.evaluation.blanks import Blanks, count_blanks
from utils.training.guards import (
    BLANK_UPDATES,
    FEWEST_MASKS,
    SMALLEST_RATE,
    WINDOW_SAMPLES,
    WINDOW_UPDATES,
    Guards,
    blank_masks,
)
from utils.training.normalization import Counts
from utils.training.report import UpdateReport

RUN_DIR = Path("runs/my run")
BATCH = -(-WINDOW_SAMPLES // WINDOW_UPDATES)  # a window of updates has samples enough
HEALTHY = UpdateReport(
    0, rate=1e-4, seconds=1.0, num_masks=5, terms={}, num_samples=BATCH, num_tokens=90, blanks=Blanks(5, 3, 1)
)
SIGNS = {
    "no supervised token": {"num_tokens": 0},
    "no mask": {"num_masks": 0, "blanks": Blanks()},
    "learning rate": {"rate": 1e-12},
}


def warnings(caplog, reports, *, mask_share: float = 1.0, total: int = 1000) -> list[str]:
    guards = Guards(mask_share=mask_share, total_updates=total, run_dir=RUN_DIR)
    with caplog.at_level(logging.WARNING):
        for number, report in enumerate(reports, 1):
            guards.see_update(replace(report, update=number))
    return caplog.messages


def test_a_healthy_run_is_left_in_peace(caplog):
    assert warnings(caplog, [HEALTHY] * 2 * BLANK_UPDATES) == []


@pytest.mark.parametrize(("says", "change"), SIGNS.items())
def test_a_sign_is_told_once_when_it_lasted_a_window(caplog, says, change):
    sick = replace(HEALTHY, **change)
    assert warnings(caplog, [sick] * (WINDOW_UPDATES - 1)) == []
    (message,) = warnings(caplog, [sick] * 3 * WINDOW_UPDATES)
    first, *rest = message.splitlines()
    assert says in first
    assert f"{WINDOW_UPDATES} updates ({WINDOW_UPDATES * BATCH} samples)" in first
    kinds = [line.split(":")[0].strip() for line in rest]
    assert kinds[0] == "It usually means"
    assert kinds[1:-1] == ["Look at"] * len(kinds[1:-1])
    assert kinds[-1] == "Next"


@pytest.mark.parametrize("change", SIGNS.values())
def test_one_healthy_update_in_a_window_is_enough(caplog, change):
    period = [replace(HEALTHY, **change)] * (WINDOW_UPDATES - 1) + [HEALTHY]
    assert warnings(caplog, period * 4) == []


def test_each_sign_is_told_in_a_run_that_has_all(caplog):
    sick = replace(HEALTHY, num_tokens=0, num_masks=0, rate=0.0, blanks=Blanks(5, 5, 0))
    messages = warnings(caplog, [sick] * 2 * BLANK_UPDATES)
    assert len(messages) == 4


def test_few_samples_make_a_window_longer(caplog):
    sick = replace(HEALTHY, num_samples=1, num_masks=0, blanks=Blanks())
    assert warnings(caplog, [sick] * (WINDOW_SAMPLES - 1)) == []
    (message,) = warnings(caplog, [sick] * WINDOW_SAMPLES)
    assert f"{WINDOW_SAMPLES} updates" in message


def test_rare_masks_are_waited_for(caplog):
    """A tenth of the samples may have masks: a window that holds none by chance is ten times as rare."""
    sick = replace(HEALTHY, num_masks=0, blanks=Blanks())
    assert warnings(caplog, [sick] * 9 * WINDOW_UPDATES, mask_share=0.1) == []
    assert len(warnings(caplog, [sick] * 11 * WINDOW_UPDATES, mask_share=0.1)) == 1


def test_a_run_without_masks_on_purpose_is_left_in_peace(caplog):
    words = replace(HEALTHY, num_masks=0, blanks=Blanks())
    assert warnings(caplog, [words] * 2 * BLANK_UPDATES, mask_share=0.0) == []


def test_the_end_of_the_schedule_may_lead_to_zero(caplog):
    end = [replace(HEALTHY, rate=0.0)] * 100
    assert warnings(caplog, [HEALTHY] * 900 + end, total=1000) == []


@pytest.mark.parametrize("preset", ["configs/pixellm_7b.json", "configs/pixellm_13b.json", "configs/tiny_cpu.json"])
def test_the_rates_of_the_presets_move_weights(repository, preset):
    run = parse(RunConfig, ["--config", str(repository / preset)], "").config
    assert run.lr / run.total_updates > SMALLEST_RATE


def test_masks_that_show_nothing_are_told_later(caplog):
    """A new decoder may draw nothing for a while."""
    sick = replace(HEALTHY, blanks=Blanks(5, 4, 1))
    assert warnings(caplog, [sick] * (BLANK_UPDATES - 1)) == []
    (message,) = warnings(caplog, [sick] * 2 * BLANK_UPDATES)
    assert f"of {5 * BLANK_UPDATES}, {4 * BLANK_UPDATES} are empty and {BLANK_UPDATES} cover" in message


@pytest.mark.parametrize(
    ("blanks", "is_sick"),
    [
        (Blanks(1000, 1000, 0), True),
        (Blanks(1000, 0, 1000), True),
        (Blanks(1000, 500, 495), True),
        (Blanks(1000, 900, 80), False),
        (Blanks(FEWEST_MASKS, FEWEST_MASKS, 0), True),
        (Blanks(FEWEST_MASKS - 1, FEWEST_MASKS - 1, 0), False),
        (Blanks(), False),
    ],
)
def test_how_many_masks_show_nothing(blanks, is_sick):
    assert (blank_masks(blanks, "here", RUN_DIR) is not None) == is_sick


def test_validation_is_judged_once_training_had_its_time(caplog):
    guards = Guards(mask_share=1.0, total_updates=1000, run_dir=RUN_DIR)
    sick = Blanks(50, 50, 0)
    with caplog.at_level(logging.WARNING):
        guards.see_validation(BLANK_UPDATES - 1, "ReasonSeg|val", sick)
        guards.see_validation(BLANK_UPDATES, "MultiReasonSeg|val", Blanks(50, 0, 0))
        assert caplog.messages == []
        guards.see_validation(BLANK_UPDATES, "ReasonSeg|val", sick)
        guards.see_validation(2 * BLANK_UPDATES, "ReasonSeg|val", sick)
    (message,) = caplog.messages
    assert "ReasonSeg|val" in message


def test_the_next_commands_can_be_typed(caplog):
    sick = replace(HEALTHY, num_tokens=0, num_masks=0, rate=0.0, blanks=Blanks(5, 5, 0))
    messages = warnings(caplog, [sick] * BLANK_UPDATES)
    commands = [shlex.split(message.rpartition("Next: ")[2]) for message in messages]
    assert {command[0] for command in commands} == {"python", "tail"}
    for command in commands:
        if command[1] == "train_ds.py":
            assert train_ds.main.__module__ == "train_ds"
            flags = [flag for flag in command[2:] if flag not in ("--config", str(RUN_DIR / "run_config.json"))]
            assert parse(RunConfig, flags, "").config.overfit_one_batch
        elif command[0] == "python":
            flags = [flag for flag in command[2:] if flag not in ("--config", str(RUN_DIR / "run_config.json"))]
            assert parse(PreviewConfig, flags, "").config.num == 12
        else:
            assert command[-1] == str(RUN_DIR / "log.jsonl")


def batch_of(labels: list[list[int]], masks: list[torch.Tensor]) -> Batch:
    ids = torch.tensor(labels)
    return Batch(
        torch.zeros(len(masks), 3, 4, 4), torch.full((len(masks), 2), 4), ids, ids, ids > 0, torch.arange(len(ids)),
        masks, [tuple(mask.shape[1:]) for mask in masks], [""] * len(masks),
    )  # fmt: skip


def test_a_pass_is_counted_as_the_loss_sees_it():
    half = torch.tensor([[[True, False]]])
    nothing = torch.zeros(0, 0, 0, dtype=torch.bool)  # of a dialogue without a photo
    batch = batch_of([[7, -100, 5], [-100, 6, -100]], [half.expand(2, 1, 2), nothing])
    areas = [torch.tensor([2, 0]), torch.zeros(0, dtype=torch.long)]
    assert Counts.of(batch) == Counts(2, 2), "the first label counts for nothing, as nothing predicts it"
    assert count_blanks(areas, batch.masks).tolist() == [2, 1, 1]
