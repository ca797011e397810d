"""Where a run draws its curves and pictures: TensorBoard, Weights & Biases, or nowhere."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.errors import InputError
from utils.cli.config import ReportTo, RunConfig


class Board(Protocol):
    """Takes numbers and pictures of an update."""

    def add_scalars(self, values: Mapping[str, float], update: int) -> None:
        """Numbers by tag."""

    def add_picture(self, tag: str, picture: np.ndarray, update: int) -> None:
        """An (H, W, 3) uint8 RGB picture."""

    def close(self) -> None: ...


class NoBoard:
    """Draws nothing."""

    def add_scalars(self, values: Mapping[str, float], update: int) -> None: ...

    def add_picture(self, tag: str, picture: np.ndarray, update: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory.

    Args:
        first_update: updates done before; what is there of later ones is dropped.
    """

    def __init__(self, folder: Path, *, first_update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_update)

    def add_scalars(self, values: Mapping[str, float], update: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, update)

    def add_picture(self, tag: str, picture: np.ndarray, update: int) -> None:
        self._writer.add_image(tag, picture, update, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WandbBoard:
    """A run of Weights & Biases, named like the run directory; each start of a command is one, all in one group.

    The user's own settings hold: ``wandb login``, WANDB_PROJECT, WANDB_MODE=offline.
    """

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        try:
            self._run: Any = self._wandb.init(
                name=folder.name,
                group=folder.name,
                dir=str(folder),
                config=dataclasses.asdict(run),
                settings=self._wandb.Settings(console="off", silent=True),
            )
        except self._wandb.errors.Error as err:
            raise InputError(
                f"--report_to wandb: {str(err).splitlines()[0]} Run wandb login, set WANDB_MODE=offline, or give "
                "--report_to tensorboard"
            ) from err

    def add_scalars(self, values: Mapping[str, float], update: int) -> None:
        self._run.log(dict(values), step=update)

    def add_picture(self, tag: str, picture: np.ndarray, update: int) -> None:
        self._run.log({tag: self._wandb.Image(picture)}, step=update)

    def close(self) -> None:
        self._run.finish()


def check_board(report_to: ReportTo) -> None:
    """Asked before weights are read.

    Raises:
        InputError: if the package is not installed.
    """
    if report_to == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError(
            "--report_to wandb needs the package wandb, which is not installed; pip install wandb, or give "
            "--report_to tensorboard"
        )


def open_board(folder: Path, run: RunConfig, *, first_update: int) -> Board:
    """The board of ``--report_to``, for the main process.

    Raises:
        InputError: if Weights & Biases cannot be reached.
    """
    if run.report_to == "wandb":
        return WandbBoard(folder, run)
    return TensorBoard(folder, first_update=first_update) if run.report_to == "tensorboard" else NoBoard()


class Tags:
    """Short names of validation sets, one for each: ``ReasonSeg|val`` is ReasonSeg-val, a custom file its stem."""

    def __init__(self) -> None:
        self._tags: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The same for the same name; of two names that would be shortened alike, the second gets a number."""
        if name not in self._tags:
            *_, last = parts = name.split("|")
            short = Path(last).stem if "/" in last or last.endswith(".jsonl") else "-".join(parts)
            short = re.sub(r"[^\w.+-]+", "-", short).strip("-")
            taken, number = short, 1
            while taken in self._tags.values():
                number += 1
                taken = f"{short}-{number}"
            self._tags[name] = taken
        return self._tags[name]
