"""One-to-one matching of predicted and true masks."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.search import seeded
from utils.evaluation.matching import EMPTY, NUM_POINTS, MatchedPairs, Overlap, match_at_points, match_masks
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


@seeded
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


@seeded
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


def match_released(predicted: np.ndarray, true: np.ndarray, *, seed: int) -> MatchedPairs:
    """Of drawn masks: every pixel is a segment."""
    lengths = np.ones(predicted.shape[1] * predicted.shape[2], dtype=np.int64)
    segments = [masks.transpose(0, 2, 1).reshape(len(masks), len(lengths)) for masks in (predicted, true)]
    overlap = Overlap.of_segments(*segments, lengths)
    return match_at_points(overlap, *segments, lengths, hw=predicted.shape[1:], seed=[seed])


def test_released_matching_finds_what_is_plain():
    pairs = match_released(bars(2, 5, 0), bars(0, 2), seed=0)
    assert pairs.pred_index.tolist() == [2, 0, 1]
    assert pairs.true_index.tolist() == [0, 1, EMPTY]
    assert pairs.iou.tolist() == [1, 1, 0]
    assert pairs.union.tolist() == [4, 4, 4]


def test_released_matching_may_give_up_a_good_pair():
    """Of 10 columns, P0 has 0 to 8, P1 has 2 and 3; G0 has 9, G1 has 1 to 3. In order, and crossed:

    IoU 0 + 2/3, and 1/3 + 0. BCE is 10 for each share of pixels that differ: 10 + 1, and 6 + 3. DICE: 1 + 1/5, and
    1/2 + 1. So the pairs are crossed where BCE + DICE decides: 10.5 instead of 12.2.
    """
    predicted, true = np.zeros((2, 2, 3, 10), dtype=bool)
    predicted[0, :, :9] = predicted[1, :, 2:4] = True
    true[0, :, 9:] = true[1, :, 1:4] = True
    assert match_masks(predicted, true).pred_index.tolist() == [0, 1]
    for seed in range(5):
        assert match_released(predicted, true, seed=seed).pred_index.tolist() == [1, 0]


def test_released_matching_depends_on_its_seed_alone():
    """Masks smaller than the gaps between points: some seeds tell the two apart, some do not."""
    predicted = np.zeros((2, 1, NUM_POINTS), dtype=bool)  # so a pixel is missed by a third of the seeds
    predicted[0, 0, 5] = predicted[1, 0, 9] = True
    true = predicted[::-1].copy()
    found = [match_released(predicted, true, seed=seed).pred_index.tolist() for seed in range(12)]
    assert found == [match_released(predicted, true, seed=seed).pred_index.tolist() for seed in range(12)]
    assert {tuple(indices) for indices in found} == {(0, 1), (1, 0)}


@seeded
@given(masks_of(4), masks_of(4))
def test_released_matching_leaves_no_mask_out(predicted, true):
    pairs = match_released(predicted, true, seed=3)
    assert sorted(pairs.pred_index[pairs.pred_index != EMPTY]) == list(range(len(predicted)))
    assert sorted(pairs.true_index[pairs.true_index != EMPTY]) == list(range(len(true)))
    assert len(pairs.iou) == max(len(predicted), len(true))


def test_released_costs_are_bce_and_dice_of_sure_logits():
    """The sums over points, written out: the same pairs for masks of noise, whose costs lie close together."""
    rng = np.random.default_rng(0)
    for seed in range(10):
        predicted, true = rng.random((2, 4, 9, 11)) < rng.uniform(0.1, 0.9)
        x, y = np.random.default_rng([seed]).random((2, NUM_POINTS))
        row, column = (y * 9).astype(int), (x * 11).astype(int)
        logits, truth = 20.0 * predicted[:, row, column] - 10, true[:, row, column]
        cost = np.zeros((4, 4))
        for one in range(4):
            probability = 1 / (1 + np.exp(-logits[one]))
            for other in range(4):
                right = np.where(truth[other], probability, 1 - probability)
                dice = 1 - (2 * probability[truth[other]].sum() + 1) / (probability.sum() + truth[other].sum() + 1)
                cost[one, other] = -np.log(right).mean() + dice
        best = min(itertools.permutations(range(4)), key=lambda way, cost=cost: cost[way, range(4)].sum())
        assert match_released(predicted, true, seed=seed).pred_index.tolist() == list(best)
