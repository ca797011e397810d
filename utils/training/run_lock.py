"""One owner per run directory: a lock file that says who holds it, and whose time of change says that it is alive."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pydantic

from model.errors import InputError
from model.values import Count, Finite, NonNegativeInt

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
_BEAT_SECONDS = 30.0
# Another machine's process cannot be looked up: without a beat for this long it counts as gone.
_STALE_SECONDS = 600.0
# psutil derives the start of a process from the clock of the machine, which may have been set by a moment since.
_SAME_START_SECONDS = 1.0


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class Owner:
    """A process that works in a run directory.

    Attributes:
        process_started: seconds since 1970; with ``pid`` it tells a process from a later one of the same number.
        job: the id that SLURM gave the job, which a requeued job keeps; empty outside of one.
        restarts: how often that job has been requeued.
        since: when the command took the directory, as people read it.
    """

    pid: Count
    process_started: Finite
    host: str
    job: str
    restarts: NonNegativeInt
    since: str

    @classmethod
    def this_process(cls) -> Owner:
        return cls(
            pid=os.getpid(),
            process_started=psutil.Process().create_time(),
            host=socket.gethostname(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    def is_alive(self) -> bool:
        """Whether the process still runs; only its own host can tell."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.process_started) < _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class RunLock:
    """Held by the main process of a run from before it looks into its directory until it has ended.

    Made by ``take``. A killed process leaves its file behind; the next start takes it over.
    """

    def __init__(self, folder: Path, owner: Owner, made: list[Path]) -> None:
        self._path, self._owner = folder / LOCK_FILE, owner
        self._made = made
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    @classmethod
    def take(cls, folder: Path) -> RunLock:
        """Become the owner of a run directory, which is made if there is none.

        Raises:
            InputError: if another process owns it, or nothing can be written there.
        """
        owner = Owner.this_process()
        made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _acquire(folder / LOCK_FILE, owner)
        except OSError as err:
            _remove_empty(made)
            raise InputError(
                f"run directory {folder} cannot be written ({err.strerror}); give a --log_base_dir and an --exp_name "
                "under which it can"
            ) from err
        return cls(folder, owner, made)

    def check(self) -> None:
        """Called before a save: a process that was thought dead must not write beside its successor.

        Raises:
            InputError: if another process has taken the directory over.
        """
        if (holder := self._successor()) is not None:
            raise InputError(
                f"run directory {self._path.parent} was taken over by {holder} while this process gave no sign of "
                "life; it stops without saving. The other one goes on from the last checkpoint"
            )

    def begin_anew(self, aside: Path) -> None:
        """Rename the directory to ``aside``, and own an empty one in its place.

        Raises:
            OSError: if it cannot be renamed.
            InputError: if another process has begun one in the same moment.
        """
        folder = self._path.parent
        folder.rename(aside)
        (aside / LOCK_FILE).unlink()
        folder.mkdir(exist_ok=True)
        _acquire(self._path, self._owner)
        self._made = [folder]

    def release(self) -> None:
        """Give the directory free; if this process made it and it is empty, it is removed."""
        self._released.set()
        if self._successor() is None:
            self._path.unlink(missing_ok=True)
            _remove_empty(self._made)

    def _successor(self) -> Owner | str | None:
        content = _read(self._path)
        if content is None:
            return None
        holder = _parse(content)
        return None if holder == self._owner else holder or "an unknown process"

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_SECONDS):
            try:
                if self._successor() is None:
                    os.utime(self._path)
            except OSError:
                logger.warning("%s cannot be touched; after ten minutes another host may take the run over", self._path)


def _acquire(path: Path, owner: Owner) -> None:
    while not _create(path, owner):
        _remove_stale(path, owner)


def _create(path: Path, owner: Owner) -> bool:
    """Write the lock file; of two processes that do so at the same moment, one gets True."""
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
    except FileExistsError:
        return False
    return True


def _read(path: Path) -> bytes | None:
    """The content of a lock file; None if there is none.

    Raises:
        InputError: if it is a link, a folder or a pipe: no run wrote it, and reading it may never end.
    """
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path} is not a file, so no run wrote it; remove it, or choose another --exp_name")
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(content: bytes) -> Owner | None:
    """Who wrote a lock file; None if it is damaged."""
    try:
        return pydantic.TypeAdapter(Owner).validate_json(content)
    except pydantic.ValidationError:
        return None


def _remove_stale(path: Path, newcomer: Owner) -> None:
    """Remove the lock of an owner that is gone, and say so.

    Raises:
        InputError: if the owner may still be there.
    """
    content = _read(path)
    if content is None:
        return
    why = _why_gone(path, _parse(content), newcomer)
    aside = path.with_name(f".{LOCK_FILE}.{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another start was faster
        return
    if aside.read_bytes() == content:
        logger.warning("took over run directory %s: %s", path.parent, why)
    else:  # another start was faster, and this is its lock
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _why_gone(path: Path, owner: Owner | None, newcomer: Owner) -> str:
    remedy = "wait for it or stop it, or choose another --exp_name"
    if owner is not None and owner.host == newcomer.host:
        if owner.is_alive():
            raise InputError(f"run directory {path.parent} is in use by {owner}; {remedy}")
        return f"{owner} has ended without releasing it"
    # Of one job, several commands may run at once, but none of before it was requeued.
    if owner is not None and owner.job and owner.job == newcomer.job and owner.restarts < newcomer.restarts:
        return f"{owner} was job {owner.job}, too, which has been requeued"
    silent = max(0.0, time.time() - path.stat().st_mtime)
    who = str(owner) if owner else f"an unknown process ({path.name} is damaged)"
    if silent < _STALE_SECONDS:
        raise InputError(
            f"run directory {path.parent} is in use by {who}, which gave a sign of life {silent:.0f} s ago; {remedy}. "
            f"If it has died, the directory is free in {_STALE_SECONDS - silent:.0f} s"
        )
    return f"{who} has given no sign of life for {silent / 60:.0f} minutes"


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the deepest first, as far as they are empty."""
    try:
        for folder in folders:
            folder.rmdir()
    except OSError:
        return
