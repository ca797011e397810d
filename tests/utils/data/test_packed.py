"""Annotations in one block: they read like a list, and workers share them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from model.errors import InputError
from utils.data.packed import Packed

RECORDS = [{"a": [1.5, "é"], "b": None}, ("x", (1, 2)), "plain", b"bytes", 7]


def test_reads_like_a_list():
    packed = Packed(iter(RECORDS))
    assert len(packed) == len(RECORDS)
    assert list(packed) == RECORDS == [packed[index] for index in range(len(packed))]
    assert packed[0] is not packed[0], "made anew, so nobody can change what others read"
    for index in (-1, len(RECORDS)):
        with pytest.raises(IndexError, match=f"record {index} of 5"):
            packed[index]


def test_nothing_is_fine():
    assert len(Packed([])) == 0


def private_kilobytes(packed: Packed) -> int:
    """What a forked process has for itself after it has read every record."""

    def read() -> None:
        assert all(len(record) == 100 for record in packed)
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        sender.send(sum(int(line.split()[1]) for line in lines if line.startswith("Private_")))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=read)
    worker.start()
    worker.join()
    return receiver.recv()


def test_a_record_that_is_nested_nearly_without_end_is_named():
    """Just short of what the JSON reader refuses."""
    nested: list = []
    for _ in range(2_000):
        nested = [nested]
    with pytest.raises(InputError, match=r"^a.json: record 1 is nested too deeply"):
        Packed([[], nested], where="a.json")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="Linux tells what memory is shared")
def test_a_worker_that_reads_everything_copies_nothing():
    """As Python objects these 3 million floats would be copied page by page into every worker."""
    rng = np.random.default_rng(0)
    few, many = (Packed(rng.random(100).tolist() for _ in range(count)) for count in (1, 30_000))
    size_of_floats = 30_000 * 100 * 8  # bytes, without what Python adds to each
    assert (private_kilobytes(many) - private_kilobytes(few)) * 1024 < size_of_floats / 4
