"""Curves of runs, from their log.jsonl alone: losses, learning rate, validation scores, speed.

Shapes: n updates of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from model.drawing import PALETTE, check_picture
from model.errors import InputError
from model.files import is_folder, parse_json, read_bytes
from model.values import Finite, NonNegativeInt, Schema, Share

from .boards import Tags

_PARTS = {"total": "loss", "ce": "text (ce)", "bce": "masks (bce)", "dice": "masks (dice)", "refine": "masks (refine)"}
_OTHERS = {"lr": "learning rate", "samples_per_second": "samples per second"}
_COLUMNS = 4
_SIZE_INCHES, _DPI = (19, 8.5), 100
_SMOOTHED_SHARE = 25  # the mean goes over this part of the updates of a run
_LINE_STYLES = {"giou": "-", "ciou": ":"}
_MARKERS = "osD^vP*X"


class LogLine(TypedDict):
    """What is read of a line of log.jsonl; older versions wrote no speed."""

    update: NonNegativeInt
    total: NotRequired[Finite | None]
    ce: NotRequired[Finite | None]
    bce: NotRequired[Finite | None]
    dice: NotRequired[Finite | None]
    refine: NotRequired[Finite | None]
    lr: NotRequired[Finite]
    samples_per_second: NotRequired[Finite | None]
    val: NotRequired[str]
    protocol: NotRequired[str]
    giou: NotRequired[Share | None]
    ciou: NotRequired[Share | None]


_LINE = Schema(LogLine)


@dataclass(frozen=True)
class RunLog:
    """What a run has written down.

    Attributes:
        name: the folder as it was given, for the legend.
        updates: the records of updates by number; of one that was made again, the later.
        scores: the records of validations by (set, protocol, update), likewise.
    """

    name: str
    updates: dict[int, LogLine]
    scores: dict[tuple[str, str, int], LogLine]

    @classmethod
    def read(cls, run: str) -> RunLog:
        """Read the log of a run directory; a last line that is not finished is left out.

        Raises:
            InputError: if there is no log, a line of it is damaged, or it tells of nothing.
        """
        file = Path(run) / "log.jsonl"
        remedy = "give the folders of runs, such as runs/pixellm"
        if not is_folder(run):
            raise InputError(f"{run} is no folder; {remedy}")
        content = read_bytes(file, remedy=remedy)
        updates: dict[int, LogLine] = {}
        scores: dict[tuple[str, str, int], LogLine] = {}
        for number, text in enumerate(content.split(b"\n")[:-1], 1):
            where, remove = f"{file}, line {number}", "remove the line"
            line = _LINE.check(parse_json(text, where=where, remedy=remove), where=where, remedy=remove)
            if "val" in line:
                scores[line["val"], line.get("protocol", ""), line["update"]] = line
            elif "total" in line:
                updates[line["update"]] = line
        if not updates and not scores:
            raise InputError(f"{file} tells of no update and of no validation yet; wait for the first one")
        return cls(run, dict(sorted(updates.items())), dict(sorted(scores.items())))

    def curve(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """(n,) updates and (n,) values that are known and finite."""
        return _curve(self.updates.items(), key)

    def score_curve(self, name: str, protocol: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The same of ``giou`` or ``ciou`` on a validation set."""
        lines = [(update, line) for (*kind, update), line in self.scores.items() if kind == [name, protocol]]
        return _curve(lines, metric)


def _curve(lines: Iterable[tuple[int, LogLine]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(update, value) for update, line in lines if (value := line.get(key)) is not None]
    return np.array([update for update, _ in points]), np.array([value for _, value in points], dtype=float)


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of each of (n,) values with its neighbors; at the ends, of those that there are."""
    if not len(values):
        return values
    half = len(values) // _SMOOTHED_SHARE // 2
    window = np.ones(2 * half + 1)
    counts = np.convolve(np.ones(len(values)), window)
    sums = np.convolve(values, window)
    return (sums / counts)[half : half + len(values)]


def plot_runs(runs: Sequence[str], output: str) -> None:
    """Draw the curves of runs into one picture.

    Args:
        runs: run directories.
        output: a PNG, or another format that the suffix names.
    Raises:
        InputError: if a log cannot be read, or the picture not be written.
    """
    check_picture(output, flag="--output", inputs=[str(Path(run) / "log.jsonl") for run in runs])
    logs = [RunLog.read(run) for run in runs]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(-(-(len(_PARTS) + 3) // _COLUMNS), _COLUMNS, figsize=_SIZE_INCHES, squeeze=False)
    panels = iter(axes.flat)
    for key, title in {**_PARTS, **_OTHERS}.items():
        _draw_curves(next(panels), logs, key, title, is_rate=key == "lr")
    _draw_scores(next(panels), logs)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=max(1, len(labels)), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=_DPI)
    pyplot.close(figure)


def _draw_curves(axis: Any, logs: Sequence[RunLog], key: str, title: str, *, is_rate: bool) -> None:
    """One number of every run: pale as it is, strong as a running mean."""
    is_positive = True
    for number, log in enumerate(logs):
        updates, values = log.curve(key)
        color = _color(number)
        if is_rate:
            axis.plot(updates, values, color=color, label=log.name)
            continue
        if not len(values):
            continue
        axis.plot(updates, values, color=color, alpha=0.25, linewidth=0.8)
        axis.plot(updates, smooth(values), color=color, linewidth=1.6, label=log.name)
        is_positive = is_positive and bool((values > 0).all())
    if key in _PARTS and is_positive:
        axis.set_yscale("log")
    _finish(axis, title)


def _draw_scores(axis: Any, logs: Sequence[RunLog]) -> None:
    """gIoU solid and cIoU dotted, a marker for each set and protocol."""
    tags, markers = Tags(), dict[tuple[str, str], str]()
    for number, log in enumerate(logs):
        for name, protocol in dict.fromkeys((name, protocol) for name, protocol, _ in log.scores):
            if (name, protocol) not in markers:
                markers[name, protocol] = _MARKERS[len(markers) % len(_MARKERS)]
                label = f"{tags.of(name)}, {protocol}"
                axis.plot([], [], marker=markers[name, protocol], color="gray", label=label)
            for metric, style in _LINE_STYLES.items():
                updates, values = log.score_curve(name, protocol, metric)
                marker = markers[name, protocol]
                axis.plot(updates, values, style, marker=marker, markersize=4, color=_color(number))
    if markers:
        axis.legend(fontsize="small", frameon=False)
    _finish(axis, "validation: gIoU (line), cIoU (dots)")


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("update", fontsize="small")
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if not axis.has_data():
        axis.text(0.5, 0.5, "not in the log", ha="center", va="center", transform=axis.transAxes, color="gray")


def _color(number: int) -> tuple[float, ...]:
    return tuple(part / 255 for part in PALETTE[number % len(PALETTE)])
