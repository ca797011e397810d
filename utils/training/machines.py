"""Several machines in one run: they have to see the same run directory."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

from model.errors import InputError
from utils import dist

from .run_lock import LOCK_FILE

_PATIENCE_S = 60.0  # a network disk may show a new folder that late
_LOOK_S = 0.2


def check_shared(folder: Path) -> None:
    """Hold all machines to seeing the folder in which the main process has its lock, before anything takes long.

    Every process writes its part of a checkpoint there.

    Raises:
        InputError: on every process, if a machine does not see that lock.
    """
    if dist.local_world_size() == dist.world_size():
        return
    lock = folder / LOCK_FILE
    content, host = dist.gather_objects((lock.read_bytes() if dist.is_main() else b"", socket.gethostname()))[0]
    with dist.stop_together():
        if not _appears(lock, content):
            raise InputError(
                f"{folder} is not the run directory of process 0, on {host}: {socket.gethostname()} does not see its "
                f"{LOCK_FILE}; give a --log_base_dir on a disk that all machines share, and mount it everywhere"
            )


def _appears(file: Path, content: bytes) -> bool:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        with suppress(OSError):
            if file.read_bytes() == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
