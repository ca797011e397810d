"""What a run says about its data before it trains."""

from __future__ import annotations

import logging

import pytest

from utils.cli.config import RunConfig
from utils.training.run_data import mask_share, warn_of_little_data


class Records(list):
    """A source, as far as it is counted."""

    name = "records"


def warnings(caplog, num_samples: int, *, updates: int, init_from: str = "") -> list[str]:
    run = RunConfig(init_from=init_from, epochs=1, steps_per_epoch=updates)
    with caplog.at_level(logging.WARNING):
        warn_of_little_data(run, [Records(range(num_samples))], images_per_update=4)
    return caplog.messages


@pytest.mark.parametrize(
    ("num_samples", "updates", "says"),
    [(14, 20, "80 samples from 14"), (14, 5000, "20000 samples from 14"), (90000, 499, "1996 samples from 90000")],
)
def test_a_bare_base_and_little_data(caplog, num_samples, updates, says):
    (message,) = warnings(caplog, num_samples, updates=updates)
    assert says in message
    assert "--init_from" in message


def test_enough_data(caplog):
    assert warnings(caplog, 2000, updates=500) == []


def test_a_trained_model_needs_little(caplog):
    assert warnings(caplog, 14, updates=20, init_from="hf_model") == []


def test_validation_alone_trains_on_nothing(caplog):
    warn_of_little_data(RunConfig(eval_only=True), [], images_per_update=4)
    assert caplog.messages == []


class Words(Records):
    """A source that has no masks on purpose."""

    mask_share = 0.0


def test_the_share_of_samples_from_records_with_masks():
    masks, words = Records(range(30)), Words(range(10))
    assert mask_share([masks, words], [1.0, 3.0], by_rate=True) == 0.25
    assert mask_share([masks, words], [1.0, 3.0], by_rate=False) == 0.75
    assert mask_share([words], [1.0], by_rate=True) == 0
    assert mask_share([], [], by_rate=True) == 0
