"""What one process of a machine has read is what all of them have; without it, each reads by itself."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import InputError
from utils.data import shared_memory
from utils.data.options import DataOptions
from utils.data.packed import Packed
from utils.data.registry import build_train_sources
from utils.data.shared_memory import read_once
from utils.data.sources import Source

RECORDS = [{"text": f"record {number}", "numbers": list(range(number))} for number in range(50)]
Read = Callable[[int], Any]


def packed(number: int) -> tuple[str, Packed]:
    """By the first process, or by another one."""
    return f"read by {number}", Packed(RECORDS)


def damaged(number: int) -> None:
    raise InputError(f"damaged, says {number}")


def killed(number: int) -> str:
    if number == 0:
        os._exit(1)
    return f"read by {number}"


def _run(number: int, num_processes: int, read: Read, num_calls: int, answers: Connection, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(num_processes), "MASTER_PORT": str(port)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        answers.send([read_once(lambda: read(number)) for _ in range(num_calls)])
    except InputError as err:
        answers.send(str(err))


def run_all(read: Read, *, num_calls: int = 1, numbers: Sequence[int] = range(3)) -> dict[int, Any]:
    """What each of three processes gets from calls in a row; None if it ended before."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        found: dict[int, Any] = {}
        running = []
        for number in numbers:
            mine, its = context.Pipe()
            process = context.Process(target=_run, args=(number, 3, read, num_calls, its, port))
            process.start()
            its.close()
            running.append((number, process, mine))
        for number, process, mine in running:
            try:
                found[number] = mine.recv()
            except EOFError:
                found[number] = None
            process.join()
    return found


@pytest.mark.slow
def test_one_process_reads_for_all_of_its_machine():
    for answers in run_all(packed, num_calls=2).values():
        for read_by, records in answers:
            assert read_by == "read by 0"
            assert list(records) == RECORDS


@pytest.mark.slow
def test_an_error_of_the_first_process_is_met_by_each(monkeypatch):
    monkeypatch.setattr(shared_memory, "_START_SECONDS", 2)  # for one that comes when the first is gone
    assert run_all(damaged) == {number: f"damaged, says {number}" for number in range(3)}


@pytest.mark.slow
def test_where_the_first_process_is_killed_the_others_read_by_themselves(monkeypatch):
    monkeypatch.setattr(shared_memory, "_START_SECONDS", 2)
    found = run_all(killed)
    assert found[0] is None
    assert all(found[number] == [f"read by {number}"] for number in (1, 2))


@pytest.mark.slow
def test_where_the_first_process_never_comes_the_others_read_by_themselves(monkeypatch):
    monkeypatch.setattr(shared_memory, "_START_SECONDS", 0.2)
    assert run_all(killed, numbers=(1, 2)) == {number: [f"read by {number}"] for number in (1, 2)}


@pytest.mark.parametrize("variables", [{}, {"LOCAL_WORLD_SIZE": "2"}, {"LOCAL_RANK": "0", "WORLD_SIZE": "1"}])
def test_a_process_alone_or_without_a_number_reads_by_itself(monkeypatch, variables):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    started = time.monotonic()
    assert read_once(lambda: "mine") == "mine"
    assert time.monotonic() - started < 10


def test_what_is_shared_cannot_be_changed():
    file = shared_memory._pack(Packed(RECORDS))
    for change in (lambda: os.pwrite(file, b"x", 0), lambda: os.ftruncate(file, 0)):
        with pytest.raises(PermissionError):
            change()
    records: Any = shared_memory._unpack(file)
    with pytest.raises(ValueError, match="read-only"):
        records._data[0] = 0


def _get(source: Source, index: int) -> tuple[Any, ...]:
    try:
        sample = source.get(index, np.random.default_rng(index))
    except InputError as err:
        return (str(err),)
    return sample.sample_id, sample.image_path, sample.conversations, sample.masks.tolist()


def test_every_source_gives_the_same_samples_from_shared_memory(whole_tree: Path):
    families = "sem_seg||refer_seg||vqa||reason_seg||multi_reason_seg"
    sources, _ = build_train_sources(DataOptions(dataset_dir=whole_tree, dataset=families, sample_rates="1,1,1,1,1"))
    shared: Any = shared_memory._unpack(shared_memory._pack(sources))
    assert len(sources) >= 10
    for own, other in zip(sources, shared, strict=True):
        assert (own.name, len(own)) == (other.name, len(other))
        for index in range(len(own)):
            samples = [_get(source, index) for source in (own, other)]
            assert samples[0] == samples[1]
