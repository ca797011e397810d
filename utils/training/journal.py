"""What a run writes down while it goes on: log.jsonl, TensorBoard, the progress bar, the console."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import dist
from utils.data.mixture import SkipTally, describe_skips
from utils.evaluation.blanks import Blanks
from utils.evaluation.metrics import IoUMeter

from .run_directory import RunDirectory

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class UpdateReport:
    """One update of all processes.

    Attributes:
        update: its number; the first one is 1.
        rate: the learning rate that it was made with.
        seconds: how long it took.
        num_masks: targets in it.
        terms: the parts of the loss by name, ``total`` among them; of the whole update.
        num_samples: photos in it, or dialogues without one.
        num_tokens: supervised ones.
        blanks: predictions that show nothing.
    """

    update: int
    rate: float
    seconds: float
    num_masks: int
    terms: dict[str, float]
    num_samples: int
    num_tokens: int
    blanks: Blanks


class Journal:
    """Tells what happens in a run; only the main process writes, the others do nothing.

    Args:
        first_update: updates done before; what TensorBoard has of later ones is dropped.
        total_updates: updates at the end of the run.
        print_freq: updates between console lines where there is no terminal for a progress bar.
    """

    def __init__(self, directory: RunDirectory, *, first_update: int, total_updates: int, print_freq: int) -> None:
        self._first_update, self._total_updates, self._print_freq = first_update, total_updates, print_freq
        self._started = time.time()
        has_terminal = sys.stderr.isatty()
        self._prints_lines = not has_terminal
        self._outputs: tuple[JsonLines, SummaryWriter, tqdm] | None = None
        if dist.is_main():
            hides_bar = not has_terminal or first_update >= total_updates
            self._outputs = (
                JsonLines(directory.log_file),
                SummaryWriter(str(directory.path), purge_step=first_update),
                tqdm(total=total_updates, initial=first_update, unit="update", disable=hides_bar),
            )

    def log_update(self, report: UpdateReport) -> None:
        """Loss, rate and speed of one update, and how long the rest will take."""
        if self._outputs is None:
            return
        lines, board, bar = self._outputs
        done, left = report.update - self._first_update, self._total_updates - report.update
        remaining = tqdm.format_interval((time.time() - self._started) / done * left)
        bar.update()
        bar.set_postfix_str(f"loss {report.terms['total']:.3f} lr {report.rate:.1e} ETA {remaining}")
        numbers = {"update": report.update, "lr": report.rate, "seconds": round(report.seconds, 4)}
        # JSON has no number that is not finite; an update that was passed over has.
        terms = {name: round(value, 6) if math.isfinite(value) else None for name, value in report.terms.items()}
        blank = report.blanks.empty + report.blanks.full
        seen = {"masks": report.num_masks, "blank_masks": blank, "tokens": report.num_tokens}
        lines.write({**numbers, **seen, **terms})
        for name, value in report.terms.items():
            board.add_scalar(f"train/{name}", value, report.update)
        board.add_scalar("train/lr", report.rate, report.update)
        board.add_scalar("metrics/seconds_per_update", report.seconds, report.update)
        if self._prints_lines and (report.update % self._print_freq == 0 or report.update == 1):
            self._print_line(report, remaining)

    def _print_line(self, report: UpdateReport, remaining: str) -> None:
        parts = " ".join(f"{name} {value:.4f}" for name, value in report.terms.items() if name != "total")
        logger.info(
            "update %d/%d loss %.4f (%s) masks %d lr %.2e %.2f s/update ETA %s",
            report.update, self._total_updates, report.terms["total"], parts, report.num_masks, report.rate,
            report.seconds, remaining,
        )  # fmt: skip

    def log_skips(self, update: int, tally: SkipTally) -> None:
        """What all processes have left out of the data so far: samples by source and reason, and turns.

        Every process has to call this with its own tally.
        """
        everybody = dist.gather_objects((tally.counts, tally.num_dropped_turns))
        counts: Counter[tuple[str, str]] = sum((counts for counts, _ in everybody), Counter())
        num_turns = sum(turns for _, turns in everybody)
        if self._outputs is None or not (counts or num_turns):
            return
        logger.warning(
            "left out so far: %d turns that exceed --model_max_length; samples that cannot be used: %s",
            num_turns,
            describe_skips(counts) or "none",
        )
        by_source = [{"source": source, "reason": reason, "count": n} for (source, reason), n in counts.items()]
        self._outputs[0].write({"update": update, "skipped": by_source, "dropped_turns": num_turns})

    def log_validation(self, update: int, name: str, meter: IoUMeter) -> None:
        """The teacher-forced scores of a validation set.

        Args:
            meter: of all processes.
        """
        logger.info("%s (teacher-forced): gIoU %.4f cIoU %.4f", name, meter.giou, meter.ciou)
        if self._outputs is None:
            return
        lines, board, _ = self._outputs
        record = {"update": update, "val": name, "protocol": "teacher-forced"}
        lines.write({**record, "giou": meter.giou, "ciou": meter.ciou})
        board.add_scalar(f"val/{name}/giou", meter.giou, update)
        board.add_scalar(f"val/{name}/ciou", meter.ciou, update)

    def close(self) -> None:
        """Close the files and the progress bar."""
        for output in self._outputs or ():
            output.close()
