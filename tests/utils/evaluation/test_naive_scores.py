"""A seeded search for masks where our scores and a naive double loop over pixels differ."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.answers import answered
from tests.support.search import seeded
from utils.evaluation.matching import EMPTY
from utils.evaluation.scores import ScoringOptions, score_records

HW = (3, 4)


def masks_of(most: int) -> st.SearchStrategy[np.ndarray]:
    return st.integers(0, most).flatmap(lambda count: arrays(bool, (count, *HW)))


ignored_pixels = st.none() | arrays(bool, HW)
questions = st.tuples(masks_of(3), masks_of(3), ignored_pixels)
expressions = st.tuples(masks_of(3), arrays(bool, (1, *HW)), ignored_pixels)


def areas(predicted: np.ndarray, true: np.ndarray, ignored: np.ndarray | None) -> tuple[int, int]:
    """I and U, pixel by pixel."""
    intersection = union = 0
    for row in range(HW[0]):
        for column in range(HW[1]):
            if ignored is not None and ignored[row, column]:
                continue
            intersection += int(predicted[row, column] and true[row, column])
            union += int(predicted[row, column] or true[row, column])
    return intersection, union


def pair_score(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def best_sum(predicted: np.ndarray, true: np.ndarray, ignored: np.ndarray | None) -> float:
    """The highest sum of IoUs of all ways to pair masks one to one; those left over add 0."""
    table = [[pair_score(*areas(mask, truth, ignored)) for truth in true] for mask in predicted]
    if len(predicted) > len(true):
        table = [[table[row][column] for row in range(len(predicted))] for column in range(len(true))]
    ways = permutations(range(max(len(predicted), len(true))), len(table))
    return max(sum(row[column] for row, column in zip(table, way, strict=True)) for way in ways)


def left_over_empty_truths(true: np.ndarray, pairs, ignored: np.ndarray | None) -> int:
    """Truths without a pixel that were left over: nothing is the right answer to them."""
    missed = pairs.true_index[(pairs.pred_index == EMPTY)]
    return sum(areas(true[index], true[index], ignored)[1] == 0 for index in missed)


@seeded
@given(st.lists(questions, min_size=1, max_size=3))
def test_matched_scores_are_those_of_a_double_loop(drawn):
    records = [
        answered(list(predicted), list(true), ignored=ignored, index=index, size=HW)
        for index, (predicted, true, ignored) in enumerate(drawn)
    ]
    groups, scored = score_records(records, "matched", options=ScoringOptions())
    nothing = np.zeros(HW, dtype=bool)
    sum_iou, num_pairs, sum_intersection, sum_union = 0.0, 0, 0, 0
    for (predicted, true, ignored), question in zip(drawn, scored, strict=True):
        pairs = question.pairs
        sum_iou += best_sum(predicted, true, ignored) + left_over_empty_truths(true, pairs, ignored)
        num_pairs += max(len(predicted), len(true))
        for pred_index, true_index in zip(pairs.pred_index, pairs.true_index, strict=True):
            mask = nothing if pred_index == EMPTY else predicted[pred_index]
            truth = nothing if true_index == EMPTY else true[true_index]
            intersection, union = areas(mask, truth, ignored)
            sum_intersection, sum_union = sum_intersection + intersection, sum_union + union
    scores = groups["all"]
    assert scores["num_pairs"] == num_pairs
    assert scores["giou"] == (pytest.approx(sum_iou / num_pairs, abs=1e-12) if num_pairs else None)
    assert scores["ciou"] == (sum_intersection / sum_union if sum_union else None)


@seeded
@given(st.lists(expressions, min_size=1, max_size=3))
def test_referring_scores_are_those_of_a_double_loop(drawn):
    records, found = [], []
    for index, (predicted, true, ignored) in enumerate(drawn):
        records.append(answered(list(predicted), list(true), ignored=ignored, index=index))
        found.append(areas(predicted.any(axis=0), true[0], ignored))
    scores = score_records(records, "referring", options=ScoringOptions())[0]["all"]
    assert scores["giou"] == pytest.approx(sum(pair_score(*pair) for pair in found) / len(found), abs=1e-12)
    union = sum(outer for _, outer in found)
    assert scores["ciou"] == (sum(inner for inner, _ in found) / union if union else None)


@seeded
@given(st.lists(st.tuples(masks_of(2), masks_of(2)), min_size=1, max_size=4), st.booleans())
def test_generalized_scores_are_those_of_a_double_loop(drawn, by_pixels):
    records, adds, sums, said, there = [], [], [0, 0], [], []
    for index, (predicted, true) in enumerate(drawn):
        records.append(answered(list(predicted), list(true), index=index, size=HW))
        united, targets = predicted.any(axis=0), true.any(axis=0)
        intersection, union = areas(united, targets, None)
        says_none = not united.any() if by_pixels else len(predicted) == 0
        if len(true):
            adds.append(0.0 if says_none or not union else intersection / union)
            sums = [sums[0] + (0 if says_none else intersection), sums[1] + union]
        else:
            adds.append(float(says_none))
            sums[1] += 0 if says_none else union
        said.append(says_none)
        there.append(len(true) > 0)
    scores = score_records(records, "generalized", options=ScoringOptions())[0]["all"]
    ending = "_empty" if by_pixels else ""
    assert scores[f"giou{ending}"] == pytest.approx(sum(adds) / len(adds), abs=1e-12)
    assert scores["ciou"] == (sums[0] / sums[1] if sums[1] else None)
    right_none = [says for says, has_target in zip(said, there, strict=True) if not has_target]
    assert scores[f"n_acc{ending}"] == (sum(right_none) / len(right_none) if right_none else 0)
