"""One process owns a run directory: who is refused, who takes over, and what a lock leaves behind."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from model.errors import InputError
from tests.support.other_host import OTHER_HOST
from utils.training import run_lock
from utils.training.run_lock import LOCK_FILE, Owner, RunLock

GONE = {**OTHER_HOST, "pid": os.getpid(), "host": socket.gethostname()}  # an earlier process of this one's number


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "runs/x"


def leave(folder: Path, content: dict[str, Any] | str, *, silent_minutes: float = 0) -> Path:
    """A lock file of another process."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    beat = time.time() - 60 * silent_minutes
    os.utime(path, (beat, beat))
    return path


def takes_over(folder: Path, caplog: pytest.LogCaptureFixture, says: str) -> None:
    lock = RunLock.take(folder)
    assert f"took over run directory {folder}: " in caplog.text
    assert says in caplog.text
    assert json.loads((folder / LOCK_FILE).read_text())["process_started"] == Owner.this_process().process_started
    lock.release()
    assert list(folder.iterdir()) == []


def refuses(folder: Path, *says: str) -> None:
    before = (folder / LOCK_FILE).read_bytes()
    with pytest.raises(InputError) as error:
        RunLock.take(folder)
    for part in ("is in use by", "choose another --exp_name", *says):
        assert part in str(error.value)
    assert (folder / LOCK_FILE).read_bytes() == before
    assert len(list(folder.iterdir())) == 1


def test_the_second_owner_is_refused(folder):
    lock = RunLock.take(folder)
    refuses(folder, f"process {os.getpid()} on {socket.gethostname()} since ")
    lock.release()
    RunLock.take(folder).release()


def test_what_a_lock_made_and_nobody_filled_is_removed(folder, tmp_path):
    RunLock.take(folder).release()
    assert list(tmp_path.iterdir()) == []
    lock = RunLock.take(folder)
    (folder / "log.jsonl").write_text("{}")
    lock.release()
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_the_lock_of_a_killed_process_is_taken_over(folder, caplog):
    leave(folder, GONE)
    takes_over(folder, caplog, f"process {os.getpid()} on {socket.gethostname()} since 2026-01-02")


def test_another_host_is_believed_for_ten_minutes(folder, caplog):
    leave(folder, OTHER_HOST, silent_minutes=9)
    refuses(folder, "process 7 on elsewhere", "a sign of life 540 s ago", "the directory is free in 60 s")
    leave(folder, OTHER_HOST, silent_minutes=11)
    takes_over(
        folder, caplog, "process 7 on elsewhere since 2026-01-02 03:04:05 +0000 has given no sign of life for 11"
    )


def test_a_requeued_job_goes_on_at_once(folder, caplog, monkeypatch):
    leave(folder, {**OTHER_HOST, "job": "4711"})
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    refuses(folder)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    refuses(folder)  # another command of the same job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    takes_over(folder, caplog, "was job 4711, too, which has been requeued")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 7}', json.dumps({**GONE, "pid": "x"}), "\0"])
def test_a_damaged_lock_counts_by_its_last_beat(folder, caplog, content):
    leave(folder, content)
    refuses(folder, "an unknown process (run.lock is damaged)")
    leave(folder, content, silent_minutes=11)
    takes_over(folder, caplog, "an unknown process")


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_starts_at_once_one_wins(folder, stale):
    if stale:
        leave(folder, OTHER_HOST, silent_minutes=60)
    ready, won, lost = threading.Barrier(8), [], []

    def take() -> None:
        ready.wait()
        try:
            won.append(RunLock.take(folder))
        except InputError as err:
            lost.append(err)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].check()


def test_an_owner_gives_signs_of_life(folder, monkeypatch):
    monkeypatch.setattr(run_lock, "_BEAT_SECONDS", 0.01)
    lock = RunLock.take(folder)
    os.utime(folder / LOCK_FILE, (0, 0))
    deadline = time.time() + 10
    while not (folder / LOCK_FILE).stat().st_mtime and time.time() < deadline:
        time.sleep(0.01)
    assert (folder / LOCK_FILE).stat().st_mtime > time.time() - 60
    lock.release()


def test_an_owner_that_was_thought_dead_notices(folder):
    """It neither saves nor removes the lock of its successor."""
    lock = RunLock.take(folder)
    lock.check()
    taken = leave(folder, OTHER_HOST)
    with pytest.raises(InputError, match=r"was taken over by process 7 on elsewhere .* stops without saving"):
        lock.check()
    lock.release()
    assert json.loads(taken.read_text()) == OTHER_HOST


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"cannot be written .* give a --log_base_dir"):
        RunLock.take(tmp_path / "file/x")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_a_lock_that_is_no_file_is_refused_at_once(folder, make):
    """Reading a pipe waits for ever, and a link to nothing can be neither made nor read."""
    folder.mkdir(parents=True)
    make(folder / LOCK_FILE)
    with pytest.raises(InputError, match=r"run\.lock is not a file, so no run wrote it; remove it"):
        RunLock.take(folder)
    assert os.path.lexists(folder / LOCK_FILE)
