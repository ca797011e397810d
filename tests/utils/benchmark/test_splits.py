"""What ``benchmark.py splits`` compares with what, and how it says so."""

from __future__ import annotations

import pytest

from scripts import benchmark
from tests.support.bad_input import refused
from utils.benchmark.splits import Division, Measured, divisions, losses_table, table


def test_every_division_makes_the_same_batch_and_follows_its_reference():
    found = list(divisions(3))
    assert {division.processes * division.passes * division.images for division in found} == {12}
    for optimizer in ("adamw", "muon"):
        own = [division for division in found if division.optimizer == optimizer]
        assert own[0] == Division(optimizer, 0, 1, 1, 12), "undivided, and without ZeRO"
        assert {division.stage for division in own if not division.offload} == {0, 1, 2, 3}
        splits = {(division.processes, division.passes) for division in own if division.stage == 2}
        assert splits == {(1, 4), (2, 2), (4, 1)}
    assert {division.stage for division in found if division.offload} == {1, 2, 3}
    assert not any(division.offload for division in found if division.optimizer == "muon"), "refused"


def test_a_machine_of_one_device_starts_one_process_at_a_time():
    assert {division.processes for division in divisions(1, most_processes=1)} == {1}


def test_the_table_shows_the_largest_difference_from_the_reference_of_the_same_optimizer():
    found = [
        Measured(Division("adamw", 0, 1, 1, 4), [4.0, 2.0], 9.0),
        Measured(Division("adamw", 3, 2, 2, 1, offload=True), [4.0, 2.5], 9.6),
        Measured(Division("muon", 0, 1, 1, 4), [8.0, 1.0], 9.0),
        Measured(Division("muon", 2, 4, 1, 1), [8.8, 1.0], 9.0),
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(found).splitlines()[2:]]
    assert rows[0] == ["adamw", "0", "global", "1x1", "reference", "2.000000", "9"]
    assert rows[1] == ["adamw", "3, offload", "global", "2x2", "2.5e-01", "2.500000", "10"]
    assert [row[4] for row in rows[2:]] == ["reference", "1.0e-01"]
    losses = losses_table(found).splitlines()
    assert losses[0] == "| Loss of update | 1 | 2 |"
    assert losses[3] == "| adamw, ZeRO-3 offload, 2x2, global | 4.000000 | 2.500000 |"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--deepspeed_config=/nowhere.json"], "/nowhere.json does not exist; give a DeepSpeed configuration"),
        (["--updates=0"], "--updates is 0"),
    ],
)
def test_wrong_command_lines(capsys, flags, says):
    refused(benchmark.main, ["splits", *flags], capsys, says)
