"""The table of scores of a report, as cells of text: rows, groups, a second run, and published figures. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .benchmarks import Published
from .scores import ScoredRow, Scores

# metric -> (its name in the page, how it is written)
_METRICS = {
    "giou": ("gIoU", "percent"),
    "ciou": ("cIoU", "percent"),
    "n_acc": ("N-acc", "percent"),
    "t_acc": ("T-acc", "percent"),
    "pr_70": ("Pr@0.7", "percent"),
    "pr_80": ("Pr@0.8", "percent"),
    "pr_90": ("Pr@0.9", "percent"),
    "released_muse_giou": ("release's gIoU", "percent"),
    "right_count": ("count right", "percent"),
    "mean_pred": ("masks given", "mean"),
    "mean_true": ("masks asked", "mean"),
    "giou_empty": ("gIoU, empty is none", "percent"),
    "n_acc_empty": ("N-acc, empty is none", "percent"),
    "t_acc_empty": ("T-acc, empty is none", "percent"),
    "num_questions": ("questions", "count"),
    "num_images": ("photos", "count"),
    "num_unjudged": ("not judged", "count"),
}
_MAIN_GROUPS = frozenset({"all", "no-target", "single-target", "multi-target"})


def score_tables(rows: Sequence[ScoredRow], other_rows: Sequence[ScoredRow] = ()) -> list[dict[str, Any]]:
    """Cells for the template: a table for the rows of each rule, as rules have metrics of their own.

    Returns:
        ``columns``: names; ``rows``: each with ``name``, ``protocol``, ``missing``, ``has_finer`` (groups beside the
        usual ones) and ``lines``. A line has ``name``, ``kind`` (``whole``, ``main``, ``finer`` or ``published``, and
        ``other`` besides for a second run), ``cells`` of (value, interval or difference), and ``note``.
    """
    beside = {(row.benchmark.name, row.protocol): row for row in other_rows}
    rules = dict.fromkeys(row.benchmark.rule for row in rows)
    return [_table([row for row in rows if row.benchmark.rule == rule], beside) for rule in rules]


def _table(rows: Sequence[ScoredRow], beside: Mapping[tuple[str, str], ScoredRow]) -> dict[str, Any]:
    scored = [scores for row in rows for scores in row.groups.values()]
    known = {name for scores in scored for name, value in scores.items() if value is not None}
    known |= {figure.metric for row in rows for figure in row.benchmark.published}
    metrics = [name for name in _METRICS if name in known]
    return {
        "columns": [_METRICS[name][0] for name in metrics],
        "rows": [
            {
                "name": row.benchmark.name,
                "protocol": row.protocol,
                "missing": row.missing,
                "has_finer": not _MAIN_GROUPS.issuperset(row.groups),
                "lines": list(_lines(row, beside.get((row.benchmark.name, row.protocol)), metrics)),
            }
            for row in rows
        ],
    }


def _lines(row: ScoredRow, other: ScoredRow | None, metrics: Sequence[str]) -> Iterable[dict[str, Any]]:
    for group, scores in row.groups.items():
        if group in _MAIN_GROUPS and not scores.get("num_questions", 1):
            continue  # no question is in it
        kind = "whole" if group == "all" else "main" if group in _MAIN_GROUPS else "finer"
        yield {"name": group, "kind": kind, "cells": _cells(scores, metrics), "note": ""}
        if other is not None and (found := other.groups.get(group)):
            cells = _differences(scores, found, metrics)
            yield {"name": group, "kind": f"{kind} other", "cells": cells, "note": ""}
    figures: dict[tuple[str, str, str, str, bool], Scores] = {}
    for figure in row.benchmark.published:
        figures.setdefault(_source(figure), {})[figure.metric] = figure.value
    for (model, group, source, protocol, is_verified), scores in figures.items():
        name = model if group == "all" else f"{model}, {group}"
        how = f"protocol: {protocol}" if protocol else "protocol not stated"
        seen = "read in the source" if is_verified else "not verified in the source"
        note = f"{source}; {how}; {seen}"
        yield {"name": name, "kind": "published", "cells": _cells(scores, metrics), "note": note}


def _source(figure: Published) -> tuple[str, str, str, str, bool]:
    return figure.model, figure.group, figure.source, figure.protocol, figure.is_verified


def _cells(scores: Scores, metrics: Sequence[str]) -> list[tuple[str, str]]:
    return [(_text(name, scores.get(name)), _interval(scores.get(f"{name}_interval"))) for name in metrics]


def _differences(scores: Scores, other: Scores, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Of the other run: its value, and how far the first one is above it."""
    cells = []
    for name in metrics:
        mine, theirs, how = scores.get(name), other.get(name), _METRICS[name][1]
        change = ""
        if isinstance(mine, int | float) and isinstance(theirs, int | float) and how != "count":
            change = f"{100 * (mine - theirs):+.1f}" if how == "percent" else f"{mine - theirs:+.2f}"
        cells.append((_text(name, theirs), change))
    return cells


def _text(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    how = _METRICS[name][1]
    return f"{100 * value:.1f}" if how == "percent" else f"{value:.2f}" if how == "mean" else f"{value:,}"


def _interval(value: Any) -> str:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(isinstance(end, int | float) for end in value):
        return ""
    low, high = value
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"
