"""What another division of an update means for a run that goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from model.errors import InputError
from utils import dist
from utils.cli.config import RunConfig
from utils.training.resume import check_batch
from utils.training.stored import Progress

STEP = Path("runs/x/ckpt_model/global_step5")


def check(run: RunConfig, *, before: int) -> None:
    progress = Progress(
        update=5, images_per_update=before, samples=5 * before, processes=4, optimizer_steps=5, schedule_steps=5
    )
    check_batch(run, progress, step=STEP)


def test_another_division_of_the_same_batch_is_not_worth_a_word(monkeypatch, caplog):
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    for mode in ("rates", "all"):
        check(RunConfig(batch_size=2, grad_accumulation_steps=4, epoch_mode=mode), before=16)
    assert caplog.messages == []


def test_another_batch_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        check(RunConfig(batch_size=2, grad_accumulation_steps=4), before=16)
    assert "resuming with 8 images per update, was 16" in caplog.text


@pytest.mark.parametrize(
    ("processes", "batch_size", "advice"),
    [
        (1, 2, "give --grad_accumulation_steps 8"),
        (2, 2, "give --grad_accumulation_steps 4"),
        (3, 2, "choose --batch_s"),
    ],
)
def test_where_an_epoch_is_all_of_the_data_the_batch_stays(monkeypatch, processes, batch_size, advice):
    """Fewer images per update would be more updates, and the run would end after a part of its epochs."""
    monkeypatch.setattr(dist, "world_size", lambda: processes)
    run = RunConfig(batch_size=batch_size, grad_accumulation_steps=1, epoch_mode="all")
    with pytest.raises(InputError, match=rf"global_step5 was trained with 16 images per update.*{advice}"):
        check(run, before=16)
