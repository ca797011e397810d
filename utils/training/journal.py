"""What a run writes down while it goes on: log.jsonl, a board, pictures, the progress bar, the console."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from model.drawing import write_image
from utils import dist
from utils.cli.config import RunConfig
from utils.data.mixture import SkipTally, describe_skips

from .boards import Tags, open_board
from .report import UpdateRecords, UpdateReport, finite
from .run_directory import RunDirectory

logger = logging.getLogger(__name__)


class IoUs(Protocol):
    """Scores of a validation set; nan where it has no mask."""

    @property
    def giou(self) -> float: ...

    @property
    def ciou(self) -> float: ...


class JsonLines:
    """A log of one JSON object per line, flushed at once so that it survives a crash."""

    def __init__(self, path: Path) -> None:
        path.resolve().parent.mkdir(parents=True, exist_ok=True)  # of a link that leads to another disk
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3), **record}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Console:
    """A progress bar in a terminal, else a line now and then, with the means of the updates since the last line.

    Args:
        first_update: updates done before; total_updates: updates at the end of the run.
        print_freq: updates between lines.
    """

    def __init__(self, records: UpdateRecords, *, first_update: int, total_updates: int, print_freq: int) -> None:
        self._records, self._first_update = records, first_update
        self._total_updates, self._print_freq = total_updates, print_freq
        self._started = time.time()
        self._prints_lines = not sys.stderr.isatty()
        self._untold: list[UpdateReport] = []
        hides_bar = self._prints_lines or first_update >= total_updates
        self._bar = tqdm(total=total_updates, initial=first_update, unit="update", disable=hides_bar)

    def see_update(self, report: UpdateReport, *, is_last: bool) -> None:
        """Move the bar; tell the first update, each ``print_freq``-th and the last one."""
        self._untold.append(report)
        self._bar.update()
        self._bar.set_postfix_str(
            f"loss {report.terms['total']:.3f} lr {report.rate:.1e} ETA {self._remaining(report.update)}"
        )
        number = report.update
        if number == 1 or number % self._print_freq == 0 or number == self._total_updates or is_last:
            self._tell()

    def _tell(self) -> None:
        """A line about the updates that no line has told of yet."""
        if self._untold and self._prints_lines:
            remaining = self._remaining(self._untold[-1].update)
            logger.info("%s", self._records.line(self._untold, total_updates=self._total_updates, remaining=remaining))
        self._untold = []

    def _remaining(self, update: int) -> str:
        done, left = update - self._first_update, self._total_updates - update
        return tqdm.format_interval((time.time() - self._started) / done * left)

    def close(self) -> None:
        self._tell()
        self._bar.close()


class Journal:
    """Tells what happens in a run; only the main process writes, the others do nothing.

    Args:
        run: its flags.
        records: turns reports into what is written.
        first_update: updates done before.
        total_updates: updates at the end of the run.
    Raises:
        InputError: on the main process, if Weights & Biases cannot be reached.
    """

    def __init__(
        self, directory: RunDirectory, run: RunConfig, records: UpdateRecords, *, first_update: int, total_updates: int
    ) -> None:
        self._directory, self._records, self._tags = directory, records, Tags()
        self._is_main = dist.is_main()
        if self._is_main:
            self._lines = JsonLines(directory.log_file)
            self._board = open_board(directory.path, run, first_update=first_update)
            self._console = Console(
                records, first_update=first_update, total_updates=total_updates, print_freq=run.print_freq
            )

    def log_update(self, report: UpdateReport, *, is_last: bool = False) -> None:
        """Losses, counts and rates of one update.

        Args:
            is_last: the run ends with it, before its last update.
        """
        if self._is_main:
            self._lines.write(self._records.record(report))
            self._board.add_scalars(self._records.scalars(report), report.update)
            self._console.see_update(report, is_last=is_last)

    def log_skips(self, update: int, tally: SkipTally) -> None:
        """What all processes have left out of the data so far: samples by source and reason, and turns.

        Every process has to call this with its own tally.
        """
        everybody = dist.gather_objects((tally.counts, tally.num_dropped_turns))
        counts: Counter[tuple[str, str]] = sum((counts for counts, _ in everybody), Counter())
        num_turns = sum(turns for _, turns in everybody)
        if not self._is_main or not (counts or num_turns):
            return
        logger.warning(
            "left out so far: %d turns that exceed --model_max_length; samples that cannot be used: %s",
            num_turns,
            describe_skips(counts) or "none",
        )
        by_source = [{"source": source, "reason": reason, "count": n} for (source, reason), n in counts.items()]
        self._lines.write({"update": update, "skipped": by_source, "dropped_turns": num_turns})

    def log_validation(
        self, update: int, name: str, scores: IoUs, *, protocol: str = "teacher-forced", **counts: int
    ) -> None:
        """The scores of a validation set.

        Args:
            scores: of all processes.
            counts: what else belongs into the record of log.jsonl.
        """
        logger.info("%s (%s): gIoU %.4f cIoU %.4f", name, protocol, scores.giou, scores.ciou)
        if not self._is_main:
            return
        ious = {"giou": finite(scores.giou), "ciou": finite(scores.ciou)}
        self._lines.write({"update": update, "val": name, "protocol": protocol, **counts, **ious})
        tag = f"val/{self._tags.of(name)}" + ("" if protocol == "teacher-forced" else f"/{protocol}")
        self._board.add_scalars({f"{tag}/{iou}": value for iou, value in ious.items() if value is not None}, update)

    def log_picture(self, update: int, name: str, picture: np.ndarray, *, protocol: str = "teacher-forced") -> None:
        """A picture of validation samples, as a file in the run directory and on the board; for the main process.

        Args:
            picture: (H, W, 3) uint8 RGB.
        """
        tag = self._tags.of(name) + ("" if protocol == "teacher-forced" else f"-{protocol}")
        write_image(self._directory.pictures / f"{tag}-update-{update}.jpg", picture)
        self._board.add_picture(f"pictures/{tag}", picture, update)

    def close(self) -> None:
        """Tell what is left to tell, and close the files and the progress bar."""
        if self._is_main:
            for output in (self._console, self._board, self._lines):
                output.close()
