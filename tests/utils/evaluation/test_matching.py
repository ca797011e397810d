"""One-to-one matching of predicted and true masks."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.evaluation.matching import EMPTY, match_masks
from utils.evaluation.metrics import pair_iou, pairwise_overlap


def masks_of(max_count: int) -> st.SearchStrategy[np.ndarray]:
    return st.integers(0, max_count).flatmap(lambda count: arrays(bool, (count, 3, 4)))


def bars(*columns: int) -> np.ndarray:
    """One mask per number: that column of a 4 x 6 picture."""
    masks = np.zeros((len(columns), 4, 6), dtype=bool)
    for mask, column in zip(masks, columns, strict=True):
        mask[:, column] = True
    return masks


def test_order_does_not_matter():
    pairs = match_masks(bars(2, 0, 1), bars(0, 1, 2))
    assert pairs.pred_index.tolist() == [1, 2, 0]
    assert pairs.true_index.tolist() == [0, 1, 2]
    assert pairs.iou.tolist() == [1, 1, 1]


def test_a_truth_is_matched_once():
    """Two copies of one object answer one question about it, not two."""
    pairs = match_masks(bars(0, 0), bars(0, 3))
    assert sorted(pairs.iou.tolist()) == [0, 1]
    assert pairs.union.tolist() == [4, 8]


def test_missed_truth_is_paired_with_nothing():
    pairs = match_masks(bars(3), bars(1, 3))
    assert pairs.pred_index.tolist() == [0, EMPTY]
    assert pairs.true_index.tolist() == [1, 0]
    assert pairs.iou.tolist() == [1, 0]
    assert pairs.union.tolist() == [4, 4]


def test_extra_prediction_is_paired_with_nothing():
    pairs = match_masks(bars(5, 3), bars(3))
    assert pairs.pred_index.tolist() == [1, 0]
    assert pairs.true_index.tolist() == [0, EMPTY]
    assert pairs.is_extra.tolist() == [False, True]
    assert pairs.iou.tolist() == [1, 0]
    assert pairs.union.tolist() == [4, 4]


def test_empty_masks():
    nothing, empty = np.zeros((0, 4, 6), dtype=bool), np.zeros((1, 4, 6), dtype=bool)
    assert match_masks(empty, empty).iou.tolist() == [1]
    assert match_masks(nothing, empty).iou.tolist() == [1], "no mask is the right answer to an absent object"
    assert match_masks(empty, nothing).iou.tolist() == [0], "an announced object is not there"
    assert match_masks(nothing, nothing).iou.tolist() == []


@given(masks_of(4), masks_of(4))
def test_best_of_all_assignments(predicted, true):
    pairs = match_masks(predicted, true)
    matched = (pairs.pred_index != EMPTY) & ~pairs.is_extra
    iou = pair_iou(*pairwise_overlap(predicted, true))
    if len(predicted) > len(true):
        iou = iou.T
    assignments = itertools.permutations(range(iou.shape[1]), iou.shape[0])
    best = max(iou[range(iou.shape[0]), columns].sum() for columns in map(list, assignments))
    assert np.isclose(pairs.iou[matched].sum(), best)


@given(masks_of(4), masks_of(4))
def test_every_mask_stands_in_one_pair(predicted, true):
    pairs = match_masks(predicted, true)
    assert len(pairs.iou) == max(len(predicted), len(true))
    assert sorted(pairs.pred_index[pairs.pred_index != EMPTY]) == list(range(len(predicted)))
    assert sorted(pairs.true_index[pairs.true_index != EMPTY]) == list(range(len(true)))
    for pred_index, true_index, inner, outer in zip(*list(vars(pairs).values())[:4], strict=True):
        left = predicted[pred_index] if pred_index != EMPTY else np.zeros((3, 4), dtype=bool)
        right = true[true_index] if true_index != EMPTY else np.zeros((3, 4), dtype=bool)
        assert (inner, outer) == ((left & right).sum(), (left | right).sum())
