"""Records of questions -> the numbers of a result. No torch.

Every number is made of pixel counts, which are whole numbers up to the last division, and sums of quotients are rounded
once. So neither processes nor batches nor the order of the records change a bit of it.

Groups of questions: always ``all``, ``no-target``, ``single-target``, ``multi-target``; where there are any, by the
number of true masks, ``targets 2-3``, ``targets 4-6``, ``targets 7+``, and ``kind K`` for each kind K of questions.
Groups of pairs: where there are any, ``small targets``, ``medium targets``, ``large targets``, whose true mask has less
than 32 x 32 pixels of the photo, less than 96 x 96, or more. These are COCO's limits.

Shapes: P predicted masks, G true masks, n pairs, S segments of the photo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import fsum
from typing import Literal

import numpy as np

from model.errors import InputError
from utils.masks.runs import cut_into_segments

from .benchmarks import Benchmark, Rule
from .generalized import Expression, score_expressions
from .intervals import Terms, interval
from .matching import MatchedPairs, Overlap, match_at_points, match_by_iou, pair_in_order, pair_united
from .metrics import ReleasedMuseMeter
from .records import Protocol, QuestionRecord, sort_records

Number = float | int | None  # None where there is nothing to divide by
Scores = dict[str, "Number | list[float]"]  # metric -> value; of metric M, ``M_interval`` is [low, high] of 95 %
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
        pairs: n, as the rule of the benchmark makes them; a pair that a judge rejected has no intersection.
        score: the gIoU of this question alone; None if it has nothing to score, as nothing was asked for or drawn.
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
        judge: who judged the words of the answers, such as a model's name; ``none`` if nobody did.
        options: what the numbers depend on.
    """

    benchmark: Benchmark
    protocol: Protocol
    groups: dict[str, Scores]
    questions: tuple[ScoredQuestion, ...]
    missing: str = ""
    judge: str = "none"
    options: ScoringOptions = ScoringOptions()


def score_records(
    records: Sequence[QuestionRecord],
    rule: Rule,
    *,
    options: ScoringOptions,
    verdicts: Verdicts | None = None,
) -> tuple[dict[str, Scores], tuple[ScoredQuestion, ...]]:
    """Score the questions of one row; see ``ScoredRow``.

    Args:
        verdicts: of a judge, by the key of a record; None if nobody judged. They count for ``matched`` alone, as only
            the paper's MUSE evaluation has such a step. A question with masks and without verdicts keeps its
            intersections, and ``num_unjudged`` counts it.
    Raises:
        InputError: if a question is recorded twice, a mask cannot be read, or verdicts belong to other masks.
    """
    ordered = sort_records(records)
    for record, after in pairwise(ordered):
        if record.key == after.key:
            raise InputError(f"{question_name(record)} is recorded twice; remove one of its lines")
    unjudged = tuple(_score_question(record, pair_masks(record, rule, options=options), rule) for record in ordered)
    questions = unjudged
    if verdicts is not None and rule == "matched":
        questions = tuple(_judge(one, verdicts.get(one.record.key), options.judge_threshold) for one in unjudged)
    groups: dict[str, Scores] = {}
    for name, belongs in _groups(ordered).items():
        members = [one for one in questions if belongs(one.record)]
        scores = _score_masks(members, rule) | _count_masks(members)
        if rule == "matched":
            # The release has no judge.
            scores["released_muse_giou"] = _released_giou([one for one in unjudged if belongs(one.record)])
        if rule == "generalized":
            scores |= _generalized_scores(members, whole_set=name == "all")
        if verdicts is not None and rule == "matched":
            scores["num_unjudged"] = sum(_is_unjudged(one.record, verdicts) for one in members)
        groups[name] = scores
    return groups | _by_size(questions, rule), questions


def question_name(record: QuestionRecord) -> str:
    """For messages."""
    return (
        f"question {record.conversation} about sample {record.index} of {record.benchmark} ({record.protocol}; "
        f"{record.sample_id})"
    )


def num_targets(record: QuestionRecord) -> int:
    """How many objects the right answer draws."""
    return record.num_true if record.has_target else 0


def pair_masks(record: QuestionRecord, rule: Rule, *, options: ScoringOptions) -> MatchedPairs:
    """The pairs of a question, without the pixels that count for nothing.

    - ``matched``. An answer that the model wrote: one to one (matching.py), unmatched masks against an empty one. An
      answer that was given: prediction j belongs to truth j.
    - ``referring``. An answer that the model wrote: all its masks together against the truth; where a question names
      several expressions, as ``matched``. An answer that was given: prediction j belongs to expression j.
    - ``generalized``. All masks of the answer together against all targets together (generalized.py).

    Raises:
        InputError: if a mask cannot be read.
    """
    num_predicted, num_true = record.num_predicted, record.num_true
    codes = [*record.predictions, *record.true_masks, *([record.ignored] if record.ignored is not None else [])]
    segments = cut_into_segments(
        codes, record.size, where=question_name(record), remedy="remove its line, and evaluate again to ask it again"
    )
    masks, lengths = segments.inside, segments.lengths
    if record.ignored is not None:
        masks = masks[:-1] & ~masks[-1]
    predicted, true = masks[:num_predicted], masks[num_predicted:]
    is_free, is_united = record.protocol == "generate", rule == "generalized"
    if is_united or (rule == "referring" and is_free and num_true <= 1):
        overlap = Overlap.of_segments(_unite(predicted), _unite(true), lengths)
        return pair_united(overlap, num_predicted=num_predicted, num_true=num_true)
    overlap = Overlap.of_segments(predicted, true, lengths)
    if not is_free:
        return pair_in_order(overlap)
    if options.matching == "released":
        seed = [options.seed, record.index, record.conversation]
        return match_at_points(overlap, predicted, true, lengths, hw=record.size, seed=seed)
    return match_by_iou(overlap)


def _unite(masks: np.ndarray) -> np.ndarray:
    """(M, S) -> (1, S); (0, S) where there is no mask."""
    return np.logical_or.reduce(masks, axis=0, keepdims=True)[: len(masks)]


def _score_question(record: QuestionRecord, pairs: MatchedPairs, rule: Rule) -> ScoredQuestion:
    if rule == "generalized":
        return ScoredQuestion(record, pairs, _expression(record, pairs).iou)
    return ScoredQuestion(record, pairs, fsum(pairs.iou) / len(pairs.iou) if len(pairs.iou) else None)


def _judge(question: ScoredQuestion, verdicts: Sequence[float] | None, threshold: float) -> ScoredQuestion:
    """A pair whose prediction got no more than the threshold loses its intersection; its union stays."""
    if verdicts is None:
        return question
    record, pairs = question.record, question.pairs
    if len(verdicts) != record.num_predicted:
        raise InputError(
            f"{question_name(record)} has {record.num_predicted} predicted masks and {len(verdicts)} verdicts of the "
            "judge; remove its line from verdicts.jsonl, and judge again"
        )
    # The place behind the last prediction is that of EMPTY, -1, which nobody judges.
    is_rejected = np.append(np.array(verdicts, dtype=float) <= threshold, False)
    kept = np.where(is_rejected[pairs.pred_index], 0, pairs.intersection)
    return _score_question(record, replace(pairs, intersection=kept), "matched")


def _is_unjudged(record: QuestionRecord, verdicts: Verdicts) -> bool:
    return record.num_predicted > 0 and record.key not in verdicts


def giou_terms(questions: Iterable[ScoredQuestion], rule: Rule) -> Terms:
    """What each question adds to both sides of gIoU."""
    if rule == "generalized":
        sums = [(question.score, 1) for question in questions]
    else:
        sums = [(fsum(question.pairs.iou), len(question.pairs.iou)) for question in questions]
    return _terms(sums)


def ciou_terms(questions: Iterable[ScoredQuestion]) -> Terms:
    """What each question adds to both sides of cIoU, in pixels."""
    return _terms([(question.pairs.intersection.sum(), question.pairs.union.sum()) for question in questions])


def _terms(sums: Sequence[tuple[float | None, int]]) -> Terms:
    table = np.array(sums, dtype=np.float64).reshape(-1, 2)
    return Terms(table[:, 0], table[:, 1])


def _score_masks(questions: Sequence[ScoredQuestion], rule: Rule) -> Scores:
    """gIoU and cIoU with their intervals; ``num_pairs`` is how many shares gIoU is the mean of."""
    images = [one.record.image for one in questions]
    giou, ciou = giou_terms(questions, rule), ciou_terms(questions)
    if rule == "generalized":
        shares = [one.score or 0.0 for one in questions]
    else:
        shares = [iou for one in questions for iou in one.pairs.iou.tolist()]
    intersection, union = (int(values.sum()) for values in (ciou.numerators, ciou.denominators))
    return {
        "num_questions": len(questions),
        "num_images": len(set(images)),
        "num_pairs": len(shares),
        "giou": fsum(shares) / len(shares) if shares else None,
        "ciou": intersection / union if union else None,
        "giou_interval": interval(giou, images),
        "ciou_interval": interval(ciou, images),
    }


def _count_masks(questions: Sequence[ScoredQuestion]) -> Scores:
    """Masks per question, and the share of questions answered with the right number of them."""
    records = [one.record for one in questions]
    if not records:
        return {"mean_pred": None, "mean_true": None, "right_count": None}
    return {
        "mean_pred": sum(record.num_predicted for record in records) / len(records),
        "mean_true": sum(num_targets(record) for record in records) / len(records),
        "right_count": sum(record.num_predicted == num_targets(record) for record in records) / len(records),
    }


def _released_giou(questions: Sequence[ScoredQuestion]) -> float | None:
    meter = ReleasedMuseMeter()
    for _, group in groupby(questions, key=lambda one: (one.record.benchmark, one.record.index)):
        of_image = list(group)
        meter.add_image(
            np.concatenate([one.pairs.intersection for one in of_image]),
            np.concatenate([one.pairs.union for one in of_image]),
            num_predicted=sum(one.record.num_predicted for one in of_image),
            num_true=sum(one.record.num_true for one in of_image),
        )
    return meter.giou if meter.num_masks else None


def _expression(record: QuestionRecord, pairs: MatchedPairs, *, by_pixels: bool = False) -> Expression:
    """A question as gRefCOCO's evaluator sees it.

    Args:
        by_pixels: an answer says "no target" if its masks show nothing, not only if it has none.
    """
    intersection, union, true_area = (
        int(values.sum()) for values in (pairs.intersection, pairs.union, pairs.true_area)
    )
    num_pixels = intersection + union - true_area
    says_none = num_pixels == 0 if by_pixels else record.num_predicted == 0
    return Expression(record.has_target, says_none, intersection, union)


def _generalized_scores(questions: Sequence[ScoredQuestion], *, whole_set: bool) -> Scores:
    """As the evaluator gives them; those that the other rule for "no target" changes stand beside, named ``_empty``."""
    by_tokens, by_pixels = (
        score_expressions(
            [_expression(one.record, one.pairs, by_pixels=by_pixels) for one in questions], whole_set=whole_set
        )
        for by_pixels in (False, True)
    )
    # cIoU and Pr@ are the same: an answer that shows nothing has no pixel in any sum.
    changed = {f"{name}_empty": by_pixels[name] for name in ("giou", "n_acc", "t_acc")}
    return {**by_tokens, **changed}


_COUNTS = {"targets 2-3": range(2, 4), "targets 4-6": range(4, 7), "targets 7+": range(7, 1 << 30)}
_SIZES = {"small targets": (0, 32**2), "medium targets": (32**2, 96**2), "large targets": (96**2, 1 << 62)}


def _groups(records: Sequence[QuestionRecord]) -> dict[str, Callable[[QuestionRecord], bool]]:
    """The groups of questions by name, and which questions belong to each."""
    groups: dict[str, Callable[[QuestionRecord], bool]] = {
        "all": lambda record: True,
        "no-target": lambda record: num_targets(record) == 0,
        "single-target": lambda record: num_targets(record) == 1,
        "multi-target": lambda record: num_targets(record) >= 2,
    }
    for name, counts in _COUNTS.items():
        if any(num_targets(record) in counts for record in records):
            groups[name] = lambda record, counts=counts: num_targets(record) in counts
    for kind in sorted({record.kind for record in records} - {""}):
        groups[f"kind {kind}"] = lambda record, kind=kind: record.kind == kind
    return groups


def _by_size(questions: Sequence[ScoredQuestion], rule: Rule) -> dict[str, Scores]:
    groups = {}
    for name, (smallest, above) in _SIZES.items():
        members = []
        for one in questions:
            area = one.pairs.true_area
            keep = ~one.pairs.is_extra & (smallest <= area) & (area < above)
            if keep.any():
                members.append(replace(one, pairs=one.pairs.select(keep)))
        if members:
            groups[name] = _score_masks(members, rule)
    return groups
