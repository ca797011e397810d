"""The same batches give the same losses, whoever takes them: other processes, other passes, other ZeRO stages.

Among the samples are photos without target and words without photo, so that some passes have no mask. Every run goes
through the real launcher; ``scripts/benchmark.py splits`` makes the whole table of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS
from tests.support.tiny_data import make_object, make_record, write_muse
from tests.support.tiny_world import TinyWorld
from tests.support.whole_tree import write_llava
from utils.benchmark.splits import Division, Measured, measure
from utils.cli.args import parse
from utils.cli.config import RunConfig

pytestmark = pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
TOLERANCE = 1e-5  # relative, as fp32 allows


class Runs:
    """Starts each run once."""

    def __init__(self, world: TinyWorld, dataset: Path, folder: Path) -> None:
        data = ("--dataset=multi_reason_seg||vqa", "--sample_rates=3,1", f"--dataset_dir={dataset}")
        # A rate that moves the losses within the few updates.
        flags = [*world.arguments, *TRAIN_FLAGS, *data, "--workers=0", "--lr=0.003", "--warmup_steps=1"]
        self._parsed, self._folder = parse(RunConfig, flags, ""), folder
        self._found: dict[Division, Measured] = {}

    def __getitem__(self, division: Division) -> Measured:
        if division not in self._found:
            run, given = self._parsed.config, self._parsed.given
            self._found[division] = measure(division, run, given, updates=6, folder=self._folder)
        return self._found[division]


@pytest.fixture(scope="module")
def runs(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    dataset = tmp_path_factory.mktemp("dataset")
    cup, plate, fork = make_object(3, "the cup"), make_object(15, "the plate"), make_object(30, "the fork")
    records = [
        make_record(1, [("Who drinks?", [cup], "One drinks from {seg}.")]),
        make_record(2, [("What is there?", [], "Nothing is there.")]),
        make_record(3, [("What is there?", [cup, plate, fork], "Cup {seg}, plate {seg} and fork {seg}.")]),
    ]
    write_muse(dataset, "train", records)
    write_llava(dataset)
    return Runs(tiny_world, dataset, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    "division",
    [
        Division("adamw", 2, 2, 2, 1),
        pytest.param(Division("adamw", 2, 1, 4, 1), marks=pytest.mark.long),
        pytest.param(Division("adamw", 3, 2, 2, 1, offload=True), marks=pytest.mark.long),
        pytest.param(Division("muon", 3, 2, 2, 1), marks=pytest.mark.long),
    ],
    ids=lambda division: division.name,
)  # fmt: skip
def test_losses_do_not_depend_on_how_a_batch_is_divided(runs, division):
    whole = runs[Division(division.optimizer, 0, 1, 1, 4)]
    assert len(whole.losses) == 6
    assert whole.losses[-1] < 0.9 * whole.losses[0], "weights have moved, so that a wrong update would show"
    assert runs[division].difference(whole) < TOLERANCE


def test_the_losses_of_the_release_depend_on_it(runs):
    """Else the samples of this file would be alike, and prove nothing."""
    local = runs[Division("adamw", 0, 1, 4, 1, normalization="local")]
    assert local.difference(runs[Division("adamw", 0, 1, 1, 4)]) > 1e-2
