"""Records of questions -> the numbers of a result. No torch.

Shapes: n pairs of masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import isnan
from typing import Literal

import numpy as np

from model.errors import InputError

from .benchmarks import Benchmark, Rule
from .matching import MatchedPairs, match_masks
from .metrics import IoUMeter, ReleasedMuseMeter
from .records import Protocol, QuestionRecord, sort_records

Number = float | int | None  # None where there is nothing to divide by
Scores = dict[str, "Number | list[Number]"]  # metric -> value; of metric M, ``M_interval`` is [low, high] of 95 %
Verdicts = Mapping[tuple[str, str, int, int], Sequence[float]]  # key of a record -> what a judge gave its predictions


@dataclass(frozen=True)
class ScoringOptions:
    """What a number depends on beside the records.

    Attributes:
        matching: ``exact`` pairs masks by IoU; ``released`` as the release does, at random points.
        seed: of those points.
        judge_threshold: a pair whose prediction got this much or less loses its intersection.
    """

    matching: Literal["exact", "released"] = "exact"
    seed: int = 0
    judge_threshold: float = 0.5


@dataclass(frozen=True)
class ScoredQuestion:
    """A question with its pairs of masks.

    Attributes:
        pairs: n, as the rule of the benchmark makes them.
        score: what the question adds to gIoU, as a mean over its pairs; None if it has none.
    """

    record: QuestionRecord
    pairs: MatchedPairs
    score: float | None


@dataclass(frozen=True)
class ScoredRow:
    """One benchmark in one protocol.

    Attributes:
        groups: ``all``, and further groups of its questions, each with its scores.
        questions: in the order of the set.
        missing: why nothing was asked; empty otherwise.
    """

    benchmark: Benchmark
    protocol: Protocol
    groups: dict[str, Scores]
    questions: tuple[ScoredQuestion, ...]
    missing: str = ""


def score_records(
    records: Sequence[QuestionRecord],
    rule: Rule,
    *,
    options: ScoringOptions,
    verdicts: Verdicts | None = None,
) -> tuple[dict[str, Scores], tuple[ScoredQuestion, ...]]:
    """Score the questions of one row; see ``ScoredRow``.

    Args:
        verdicts: of a judge, for all of the questions; None if nobody judged.
    Raises:
        InputError: if a question is recorded twice, or a mask cannot be read.
    """
    ordered = sort_records(records)
    keys = [record.key for record in ordered]
    for key, after in pairwise(keys):
        if key == after:
            raise InputError(f"{_name(key)} is recorded twice; a question counts once. Remove one of its lines")
    questions = tuple(_score_question(record) for record in ordered)
    groups = {
        "all": questions,
        "no-target": [one for one in questions if one.record.num_true == 0],
        "single-target": [one for one in questions if one.record.num_true == 1],
        "multi-target": [one for one in questions if one.record.num_true >= 2],
    }
    return {name: _scores(of_group) for name, of_group in groups.items()}, questions


def _name(key: tuple[str, str, int, int]) -> str:
    benchmark, protocol, index, conversation = key
    return f"question {conversation} of sample {index} of {benchmark}, {protocol},"


def _score_question(record: QuestionRecord) -> ScoredQuestion:
    pairs = match_masks(*record.masks())
    return ScoredQuestion(record, pairs, float(pairs.iou.mean()) if len(pairs.iou) else None)


def _scores(questions: Sequence[ScoredQuestion]) -> Scores:
    meter, released = IoUMeter(), ReleasedMuseMeter()
    for _, group in groupby(questions, key=lambda one: (one.record.benchmark, one.record.index)):
        of_image = list(group)
        intersection = np.concatenate([one.pairs.intersection for one in of_image])
        union = np.concatenate([one.pairs.union for one in of_image])
        meter.add_pairs(intersection, union, is_extra=np.concatenate([one.pairs.is_extra for one in of_image]))
        released.add_image(
            intersection,
            union,
            num_predicted=sum(one.record.num_predicted for one in of_image),
            num_true=sum(one.record.num_true for one in of_image),
        )
    records = [one.record for one in questions]
    scores: Scores = {
        "num_questions": len(records),
        "num_images": len({record.image for record in records}),
        "giou": meter.giou,
        "ciou": meter.ciou,
        "released_muse_giou": released.giou,
        "mean_pred": _mean([record.num_predicted for record in records]),
        "mean_true": _mean([record.num_true for record in records]),
        "right_count": _mean([record.num_predicted == record.num_true for record in records]),
    }
    return {name: None if isinstance(value, float) and isnan(value) else value for name, value in scores.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
