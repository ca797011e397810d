"""The quickstart: which held-out image it chats about, and what its run took and reached."""

from __future__ import annotations

from pathlib import Path
from typing import NotRequired

import numpy as np
from tqdm import tqdm
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import parse_json, read_bytes, read_json
from model.values import Finite, NonNegativeInt, Schema, Share, shorten
from utils.data.registry import build_val_source

_AGAIN = "run scripts/quickstart.sh again"
_PAGE = "bash scripts/quickstart.sh --demo"  # also installs what the page needs
_DIGITS = 9
_GROUPS = ("all", "single-target", "multi-target")  # results.json has finer ones


class LogRecord(TypedDict):
    """What is read of a line of log.jsonl."""

    total: NotRequired[Finite]


class SliceScores(TypedDict):
    """What is read of one group of questions in results.json; null where no mask gives a score."""

    giou: Share | None
    ciou: Share | None
    num_questions: NonNegativeInt


class Result(TypedDict):
    """The results of one validation set."""

    name: str
    scores: dict[str, SliceScores]


class Results(TypedDict):
    """What is read of results.json."""

    results: list[Result]


_RECORD, _RESULTS = Schema(LogRecord), Schema(Results)


def example(dataset_dir: str) -> str:
    """``IMAGE|QUESTION``: the first question of the held-out set that asks for three objects."""
    source = build_val_source(dataset_dir, "MultiReasonSeg|test_less")
    samples = [source.get(index, np.random.default_rng(0)) for index in range(len(source))]
    for sample in samples:
        for conversation in sample.conversations:
            if len(conversation[0].targets) == 3:
                return f"{sample.image_path}|{conversation[0].question}"
    raise InputError(f"--dataset_dir {dataset_dir}: no held-out question asks for three objects; {_AGAIN}")


def table(run: Path) -> str:
    """Seconds of each stage, the loss and the scores as text; pictures of the chat, the report, and the page."""
    seconds = _seconds(run / "stages.tsv")
    rows = [(f"time of {name}, all runs together", tqdm.format_interval(value)) for name, value in seconds.items()]
    losses = _losses(run / "log.jsonl")
    rows.append(("loss, first and last 20 updates", f"{np.mean(losses[:20]):.3f} -> {np.mean(losses[-20:]):.3f}"))
    file = run / "evaluation" / "results.json"
    results = _RESULTS.check(read_json(file, remedy=_AGAIN), where=str(file), remedy=_AGAIN)["results"]
    rows += [row for result in results for row in _score_rows(result)]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    pictures = [f"picture of the chat: {path}" for path in sorted((run / "chat").glob("*_targets.png"))]
    report = f"answers, the worst first, to open in a browser: {file.with_name('report.html')}"
    page = f"ask about photos on a web page: {_PAGE}"
    return "\n".join([*lines, *pictures, report, page])


def _seconds(file: Path) -> dict[str, int]:
    """Stage -> seconds of all its runs."""
    seconds: dict[str, int] = {}
    for number, line in enumerate(read_bytes(file, remedy=_AGAIN).decode(errors="replace").splitlines(), 1):
        name, _, value = line.partition("\t")
        if not value.isdecimal() or len(value) > _DIGITS:
            raise InputError(f"{file}, line {number}: {shorten(line)}; expected a stage, a tab and seconds; {_AGAIN}")
        seconds[name] = seconds.get(name, 0) + int(value)
    return seconds


def _losses(log: Path) -> list[float]:
    """Of every update in a run's log, which tells of other things, too."""
    losses: list[float] = []
    for number, line in enumerate(read_bytes(log, remedy=_AGAIN).splitlines(), 1):
        where = f"{log}, line {number}"
        record = _RECORD.check(parse_json(line, where=where, remedy=_AGAIN), where=where, remedy=_AGAIN)
        losses += [record["total"]] if "total" in record else []
    if not losses:
        raise InputError(f"{log} tells of no update; {_AGAIN}")
    return losses


def _score_rows(result: Result) -> list[tuple[str, str]]:
    return [
        (f"{result['name']}, {group}: gIoU / cIoU", f"{_number(scores['giou'])} / {_number(scores['ciou'])}")
        for group, scores in result["scores"].items()
        if group in _GROUPS and scores["num_questions"]
    ]


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
