"""What ``benchmark.py train`` measures: whole updates, the same ones in every way of computing them."""

from __future__ import annotations

import statistics

import pytest
import torch

from scripts.benchmark import main
from utils.benchmark.train import PARTS, WAYS, Bench, Measured, Way, measure

pytestmark = pytest.mark.slow  # some seconds
ONE = {"images": 1, "conversations": 2, "masks": 1, "photo": (30, 40)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench("tiny", **ONE, precision="fp32", device=torch.device("cpu"), folder=tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def found(bench) -> dict[Way, Measured]:
    return measure(bench, WAYS, steps=2)


def test_every_way_makes_the_same_updates(found):
    first = found[WAYS[0]].losses
    assert len(first) == 2
    for numbers in found.values():
        assert numbers.losses == pytest.approx(first, rel=1e-5)


def test_the_parts_are_of_the_whole(found):
    for numbers in found.values():
        for update, seconds in enumerate(numbers.seconds):
            parts = {part: numbers.parts[part][update] for part in PARTS}
            assert all(spent > 0 for spent in parts.values())
            assert sum(parts.values()) <= seconds * 1.001
            assert sum(parts.values()) > 0.5 * seconds


def test_a_shared_prefix_is_fewer_tokens_and_none_is_padding(found):
    shared, apart = (found[Way(shared_prefix=shared, checkpointing=False)] for shared in (True, False))
    assert shared.tokens == shared.real < 0.6 * apart.tokens
    assert apart.real < apart.tokens


def test_memory_is_that_of_an_update(found):
    assert all(statistics.median(numbers.peaks) > 2**20 for numbers in found.values())


def test_the_command_writes_its_table(tmp_path, capsys):
    file = tmp_path / "train.md"
    flags = ["--size=tiny", "--images=1", "--conversations=1", "--masks=1", "--photo=30x40", "--steps=1"]
    assert main(["train", *flags, f"--output_md={file}"]) == 0
    out = capsys.readouterr().out
    assert "tiny, fp32: 1 image(s) x 1 conversation(s) x 1 mask(s), 30x40" in out
    assert out.count("| shared prefix, kept activations |") == 1
    assert "| rows apart" not in out
    assert out.strip() in file.read_text(encoding="utf-8")


def test_a_size_that_is_none_is_refused(capsys):
    assert main(["train", "--photo=0x40"]) == 2
    assert "--photo" in capsys.readouterr().err
