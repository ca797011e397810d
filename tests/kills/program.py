"""train_ds.py whose saves take their time, so that a kill can meet one; with KILLS_DELAY it is one process that does.

KILLS_MARK is a file that a process appends its rank to when it begins to write its part of a checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

import train_ds
from utils import dist
from utils.cli.command import exit_at_once
from utils.training import checkpoints
from utils.training.parts import Piece

_write_part = checkpoints.write_part


def write_slowly(file: Path, pieces: Iterable[Piece], random_states: dict[str, Tensor]) -> None:
    with open(os.environ["KILLS_MARK"], "a", encoding="utf-8") as mark:
        mark.write(f"{dist.rank()}\n")
    slow, seconds = os.environ["KILLS_DELAY"].split(":")
    if dist.rank() == int(slow):
        time.sleep(float(seconds))
    _write_part(file, pieces, random_states)


if __name__ == "__main__":
    if "KILLS_DELAY" in os.environ:
        checkpoints.write_part = write_slowly
    exit_at_once(train_ds.main())
