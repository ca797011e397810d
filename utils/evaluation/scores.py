"""Records of questions -> the numbers of a result. No torch.

Shapes: n pairs of masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .benchmarks import Benchmark, Rule
from .matching import MatchedPairs
from .records import Protocol, QuestionRecord

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
    """
    raise NotImplementedError
