"""What ``benchmark.py train`` measures: whole updates, the same ones in every way of computing them."""

from __future__ import annotations

import statistics

import pytest
import torch

from scripts.benchmark import main
from tests.support.launch import NUM_PROCESSES
from utils.benchmark.random_model import random_network
from utils.benchmark.train import PARTS, WAYS, Bench, Measured, Way, measure
from utils.training.costs import update_flops

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
            assert parts.pop("communication") == 0, "there is one process"
            assert all(spent > 0 for spent in parts.values())
            assert sum(parts.values()) <= seconds * 1.001
            assert sum(parts.values()) > 0.5 * seconds


def test_a_shared_prefix_is_fewer_tokens_and_none_is_padding(found):
    shared, apart = (found[Way(shared_prefix=shared, checkpointing=False)] for shared in (True, False))
    assert shared.tokens == shared.real < 0.6 * apart.tokens
    assert apart.real < apart.tokens


def test_memory_is_that_of_an_update(found):
    assert all(statistics.median(numbers.peaks) > 2**20 for numbers in found.values())


def test_no_update_is_faster_than_its_matrix_products(bench, found):
    """The floor; and what is recomputed is among them."""
    shared, recomputed = (found[Way(shared_prefix=True, checkpointing=again)].flops for again in (False, True))
    assert shared < recomputed
    assert update_flops(bench.config, num_tokens=found[WAYS[0]].tokens) < shared
    assert bench.clock.matmul_flops(torch.float32, repeats=1) > 1e8


def test_published_sizes_are_drawn_on_the_device_in_their_type(tmp_path):
    network, _ = random_network("7b", tmp_path, dtype=torch.bfloat16, device=torch.device("meta"))
    assert {(weight.device.type, weight.dtype) for weight in network.parameters()} == {("meta", torch.bfloat16)}
    assert sum(weight.numel() for weight in network.model.layers.parameters()) == pytest.approx(6.48e9, rel=0.001)
    assert network.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")
def test_several_processes_average_their_gradients(forks, tmp_path):
    """Each has photos of its own; the table of both is printed once."""
    flags = ["--size=tiny", "--images=1", "--conversations=1", "--masks=1", "--photo=40x30", "--steps=1"]
    finished = forks.python("scripts/benchmark.py", "train", *flags, processes=2)
    assert finished.code == 0, finished.text
    titles, _, row = (line.strip("|").split("|") for line in finished.stdout.splitlines() if line.startswith("|"))
    cells = dict(zip(map(str.strip, titles), map(str.strip, row), strict=True))
    assert float(cells["communication"].split()[0]) > 0
    assert float(cells["samples/s"]) == pytest.approx(2 / float(cells["s"]), rel=0.1)


def test_the_command_writes_its_table(tmp_path, capsys):
    file = tmp_path / "train.md"
    flags = ["--size=tiny", "--images=1", "--conversations=1", "--masks=1", "--photo=40x30", "--steps=1"]
    assert main(["train", *flags, f"--output_md={file}"]) == 0
    out = capsys.readouterr().out
    assert "tiny, fp32, sdpa: 1 image(s) x 1 conversation(s) x 1 mask(s), 40x30" in out
    assert out.count("| shared prefix, kept activations |") == 1
    assert "| rows apart" not in out
    assert out.strip() in file.read_text(encoding="utf-8")


def test_a_size_that_is_none_is_refused(capsys):
    assert main(["train", "--photo=0x40"]) == 2
    assert "--photo" in capsys.readouterr().err
