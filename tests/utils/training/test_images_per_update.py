"""A preset says how many images an update has; with another number of processes, the start is refused with a remedy."""

from __future__ import annotations

import dataclasses
import re

import pytest

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.training.update import check_images_per_update

RUN = RunConfig(batch_size=4, grad_accumulation_steps=5, images_per_update=160)


@pytest.fixture
def processes(monkeypatch):
    return lambda number: monkeypatch.setenv("WORLD_SIZE", str(number))


@pytest.mark.parametrize(
    ("run", "number"),
    [
        (RUN, 8),
        (dataclasses.replace(RUN, grad_accumulation_steps=20), 2),
        (dataclasses.replace(RUN, images_per_update=0), 3),
        # These make no update of that size, whoever starts them.
        (dataclasses.replace(RUN, eval_only=True), 1),
        (dataclasses.replace(RUN, overfit_one_batch=True), 1),
    ],
)
def test_what_fits_passes(processes, run, number):
    processes(number)
    check_images_per_update(run)


@pytest.mark.parametrize(
    ("number", "found", "remedy"),
    [
        (4, 80, "give --grad_accumulation_steps=10 to keep 160"),
        (1, 20, "give --grad_accumulation_steps=40 to keep 160"),
        (16, 320, "give a --batch_size by which, times 16, 160 can be divided"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_flag_that_does(processes, number, found, remedy):
    processes(number)
    message = (
        f"{number} process(es) x --batch_size=4 x --grad_accumulation_steps=5 make {found} images an update, but "
        f"--images_per_update is 160; {remedy}, or --images_per_update={found} to train otherwise"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_images_per_update(RUN)
