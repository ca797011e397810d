"""From the answers in a folder to the numbers: results.json, the report and the printed table. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.files import write_json, write_text
from model.outputs import check_output_file

from .compare import compare
from .flags import EvaluateConfig
from .folder import (
    COMPARISON,
    REPORT,
    RESULTS,
    SCORED,
    AnsweredRow,
    Scoring,
    Settings,
    read_rows,
    read_settings,
    write_settings,
)
from .judge import judge_rows, judged_by, read_verdicts
from .matching import EMPTY, UNITED
from .report import write_report
from .scores import ScoredQuestion, ScoredRow, Scores, ScoringOptions, Verdicts, score_records

# What the printed table shows; results.json and the report have all.
GROUPS = ("all", "no-target", "single-target", "multi-target")
_SHARES = {
    "giou": "gIoU",
    "ciou": "cIoU",
    "right_count": "count ok",
    "released_muse_giou": "released gIoU",
    "n_acc": "N-acc",
    "t_acc": "T-acc",
    "pr_70": "Pr@70",
    "pr_80": "Pr@80",
    "pr_90": "Pr@90",
}
_PLACES = {EMPTY: None, UNITED: "all"}
_MEANS = {"mean_pred": "pred", "mean_true": "true"}


def finish(folder: Path) -> list[ScoredRow]:
    """Score the answers of a folder, and write results.json, questions.jsonl and report.html into it.

    They depend on settings.json, predictions.jsonl and verdicts.jsonl alone.

    Raises:
        InputError: if questions are not answered yet, or a file is damaged.
    """
    rows = score_folder(folder)
    settings = read_settings(folder)
    write_json(folder / RESULTS, {"settings": settings, "results": [_result(row) for row in rows]})
    lines = (json.dumps(_question(row, one)) for row in rows for one in row.questions)
    write_text(folder / SCORED, "".join(f"{line}\n" for line in lines))
    write_report(folder / REPORT, rows, settings=settings)
    return rows


def score_folder(folder: Path) -> list[ScoredRow]:
    """The rows of a folder with their scores.

    Raises:
        InputError: as ``finish``.
    """
    scoring = read_settings(folder)["scoring"]
    options = ScoringOptions(scoring["matching"], scoring["seed"], scoring["judge_threshold"])
    verdicts = read_verdicts(folder) if scoring["judge"] == "llm" else None
    return [
        _score(row, options, verdicts, judge=judged_by(folder, row.records) if verdicts else "none")
        for row in read_rows(folder)
    ]


def _score(row: AnsweredRow, options: ScoringOptions, verdicts: Verdicts | None, *, judge: str) -> ScoredRow:
    if row.missing:
        return ScoredRow(row.benchmark, row.protocol, {}, (), row.missing, judge, options)
    if judge == "none":
        verdicts = None
    groups, questions = score_records(row.records, row.benchmark.rule, options=options, verdicts=verdicts)
    return ScoredRow(row.benchmark, row.protocol, groups, questions, judge=judge, options=options)


def rescore(folder: Path, config: EvaluateConfig, given: Collection[str]) -> list[ScoredRow]:
    """``finish``, with other settings of the scoring; a judge that is named is asked about what it has not judged.

    Args:
        given: names of the flags that the user gave; what was not given stays as it was.
    Raises:
        InputError: as ``finish`` and ``judge_rows``.
    """
    settings = read_settings(folder)
    judge_answers(folder, config)
    changes = {name: getattr(config, name) for name in Scoring.__annotations__ if name in given}
    write_settings(folder, Settings(**{**settings, "scoring": {**settings["scoring"], **changes}}))
    return finish(folder)


def judge_answers(folder: Path, config: EvaluateConfig) -> None:
    """Have the answers judged, if the flags name a judge.

    Raises:
        InputError: if questions are not answered yet, or as ``judge_rows``.
    """
    rows = read_rows(folder)
    if judge := config.chosen_judge:
        # Rows may share questions; verdicts count for this rule alone.
        records = {one.key: one for row in rows if row.benchmark.rule == "matched" for one in row.records}
        judge_rows(folder, list(records.values()), judge)


def compare_folders(one: Path, other: Path) -> str:
    """Two evaluations question by question: as plain text, and as a page in the second folder.

    Raises:
        InputError: if a folder cannot be scored, the two have nothing in common, or the page cannot be written.
    """
    page = other / COMPARISON
    check_output_file(page, flag="--compare")
    rows, others = score_folder(one), score_folder(other)
    text = compare(rows, others).table(one=str(one), other=str(other))
    write_report(page, rows, settings=read_settings(one), other=(str(other), others))
    return f"{text}\n\n{page} shows both side by side"


def _result(row: ScoredRow) -> dict[str, Any]:
    return {
        "name": row.benchmark.name,
        "protocol": row.protocol,
        "missing": row.missing,
        "judge": row.judge,
        "num_questions": len(row.questions),
        "num_images": len({one.record.image for one in row.questions}),
        "scores": row.groups,
        "published": [asdict(figure) for figure in row.benchmark.published],
    }


def _question(row: ScoredRow, question: ScoredQuestion) -> dict[str, Any]:
    """A line of questions.jsonl. A mask of a pair is its place, ``all`` for several as one, or null for none."""
    record, pairs = question.record, question.pairs
    names = ("prediction", "truth", "intersection", "union", "iou")
    values = (pairs.pred_index, pairs.true_index, pairs.intersection, pairs.union, pairs.iou)
    of_pairs = [dict(zip(names, pair, strict=True)) for pair in zip(*(each.tolist() for each in values), strict=True)]
    for pair in of_pairs:
        pair |= {name: _PLACES.get(pair[name], pair[name]) for name in ("prediction", "truth")}
    key = {"benchmark": record.benchmark, "index": record.index, "conversation": record.conversation}
    return {"name": row.benchmark.name, "protocol": row.protocol, **key, "score": question.score, "pairs": of_pairs}


def table(rows: Sequence[ScoredRow]) -> str:
    """Scores as plain text, IoUs and shares in percent."""
    return "\n".join(line for row in rows for line in _table_of(row))


def _table_of(row: ScoredRow) -> list[str]:
    title = f"{row.benchmark.name}   protocol: {row.protocol}   judge: {row.judge}"
    if row.missing:
        return [title, f"missing: {row.missing}"]
    shown = [name for name in GROUPS if row.groups.get(name, {}).get("num_questions")]
    metrics = {name: label for name, label in (_SHARES | _MEANS).items() if name in row.groups["all"]}
    widths = [max(8, len(label) + 2) for label in metrics.values()]
    heads = "".join(f"{label:>{width}}" for label, width in zip(metrics.values(), widths, strict=True))
    lines = [title, f"{'':15}{'questions':>10}{heads}"]
    for group in shown:
        scores = row.groups[group]
        cells = "".join(f"{_cell(name, scores):>{width}}" for name, width in zip(metrics, widths, strict=True))
        lines.append(f"{group:15}{scores['num_questions']:>10}{cells}")
    return lines


def _cell(metric: str, scores: Scores) -> str:
    value = scores.get(metric)
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.2f}" if metric in _MEANS else f"{value:.1%}"
