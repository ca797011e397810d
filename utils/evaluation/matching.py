"""Which predicted mask answers which true mask of a question. No torch.

Shapes: P predicted masks, G true masks, n pairs, S segments of the photo, H, W size of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .metrics import pair_iou, pairwise_overlap

EMPTY = -1
UNITED = -2

NUM_POINTS = 12544  # at which the release compares masks
_SURE_LOGIT = 10.0  # what a mask stands for there: +10 inside, -10 outside


@dataclass(frozen=True)
class MatchedPairs:
    """The n pairs of one question: matched ones by true index, then missed truths, then extras.

    Attributes:
        pred_index: (n,) int64 predicted mask of the pair, ``EMPTY`` where the truth was missed, ``UNITED`` for all
            masks of the answer together.
        true_index: (n,) int64 true mask of the pair, ``EMPTY`` where the prediction is extra, ``UNITED`` for all true
            masks together.
        intersection, union: (n,) int64 pixels.
        true_area: (n,) int64 pixels of the true mask.
    """

    pred_index: np.ndarray
    true_index: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    true_area: np.ndarray

    @property
    def is_extra(self) -> np.ndarray:
        """(n,) bool, predictions that no true mask is left for."""
        return self.true_index == EMPTY

    @property
    def iou(self) -> np.ndarray:
        """(n,) float64, 0 for an extra prediction even when it is empty (see metrics.py)."""
        return np.where(self.is_extra, 0.0, pair_iou(self.intersection, self.union))

    def select(self, keep: np.ndarray) -> MatchedPairs:
        """Those of the pairs that a (n,) bool names."""
        return MatchedPairs(*(values[keep] for values in vars(self).values()))


@dataclass(frozen=True)
class Overlap:
    """How the masks of one question lie over each other.

    Attributes:
        intersection: (P, G) int64 pixels.
        pred_area: (P,) int64 pixels; true_area: (G,).
    """

    intersection: np.ndarray
    pred_area: np.ndarray
    true_area: np.ndarray

    @classmethod
    def of_segments(cls, predicted: np.ndarray, true: np.ndarray, lengths: np.ndarray) -> Overlap:
        """From (P, S) and (G, S) bool masks of segments with (S,) int64 pixels."""
        # float64, for which numpy has a fast product, holds pixel counts exactly up to 2**53.
        weighted = predicted * lengths.astype(np.float64)
        return cls((weighted @ true.T.astype(np.float64)).astype(np.int64), predicted @ lengths, true @ lengths)

    @property
    def union(self) -> np.ndarray:
        """(P, G) int64 pixels."""
        return self.pred_area[:, None] + self.true_area[None, :] - self.intersection


def match_masks(predicted: np.ndarray, true: np.ndarray) -> MatchedPairs:
    """``match_by_iou`` for masks that are drawn.

    Args:
        predicted: (P, H, W) bool.
        true: (G, H, W) bool.
    """
    intersection, _ = pairwise_overlap(predicted, true)
    return match_by_iou(Overlap(intersection, predicted.sum(axis=(1, 2)), true.sum(axis=(1, 2))))


def match_by_iou(overlap: Overlap) -> MatchedPairs:
    """Pair the masks of one question so that the sum of IoUs is highest (Hungarian algorithm).

    A missed truth is paired with an empty prediction and an extra prediction with an empty truth, as in the paper's
    MUSE evaluation. The release matches at random points without a seed, so its pairs change from run to run; IoU
    needs no randomness and is what is reported afterwards.
    """
    iou = pair_iou(overlap.intersection, overlap.union)
    return _with_unmatched(overlap, *linear_sum_assignment(iou, maximize=True))


def match_at_points(
    overlap: Overlap,
    predicted: np.ndarray,
    true: np.ndarray,
    lengths: np.ndarray,
    *,
    hw: tuple[int, int],
    seed: list[int],
) -> MatchedPairs:
    """Pair the masks of one question as the release does: lowest BCE + DICE at ``NUM_POINTS`` random points.

    Three departures. A record holds masks, no logits: a mask stands for logits of +10 and -10. A point takes the value
    of the pixel that it lies in; the release interpolates between four. The points follow from a seed.

    Args:
        overlap: of the masks.
        predicted, true: (P, S), (G, S) bool; lengths: (S,) int64 pixels, column after column.
        hw: (H, W) of the photo.
        seed: of the points; the same for the same question, whatever was scored before it.
    """
    x, y = np.random.default_rng(seed).random((2, NUM_POINTS))
    pixel = (x * hw[1]).astype(np.int64) * hw[0] + (y * hw[0]).astype(np.int64)
    segment = np.searchsorted(np.cumsum(lengths), pixel, side="right")
    points = Overlap.of_segments(predicted, true, np.bincount(segment, minlength=len(lengths)))
    both, pred_area, true_area = points.intersection, points.pred_area[:, None], points.true_area[None, :]
    wrong = pred_area + true_area - 2 * both
    bce = (np.logaddexp(0, _SURE_LOGIT) * wrong + np.logaddexp(0, -_SURE_LOGIT) * (NUM_POINTS - wrong)) / NUM_POINTS
    outside, inside = 1 / (1 + np.exp([_SURE_LOGIT, -_SURE_LOGIT]))  # probabilities
    product = inside * both + outside * (true_area - both)
    dice = 1 - (2 * product + 1) / (inside * pred_area + outside * (NUM_POINTS - pred_area) + true_area + 1)
    return _with_unmatched(overlap, *linear_sum_assignment(bce + dice))


def pair_in_order(overlap: Overlap) -> MatchedPairs:
    """Prediction j belongs to truth j; one that is missing counts as an empty mask."""
    both = np.arange(min(overlap.intersection.shape))
    return _with_unmatched(overlap, both, both)


def pair_united(overlap: Overlap, *, num_predicted: int, num_true: int) -> MatchedPairs:
    """One pair: all masks of the answer together, and all true masks together. None if there is neither.

    Args:
        overlap: of the two, each 0 or 1 masks.
        num_predicted, num_true: how many masks they unite.
    """
    pairs = pair_in_order(overlap)
    return MatchedPairs(
        pred_index=np.where(pairs.pred_index != EMPTY, UNITED if num_predicted > 1 else 0, EMPTY),
        true_index=np.where(pairs.true_index != EMPTY, UNITED if num_true > 1 else 0, EMPTY),
        intersection=pairs.intersection,
        union=pairs.union,
        true_area=pairs.true_area,
    )


def _with_unmatched(overlap: Overlap, pred_index: np.ndarray, true_index: np.ndarray) -> MatchedPairs:
    """The matched pairs, and a pair for every mask that was left over."""
    order = np.argsort(true_index)
    pred_index, true_index = pred_index[order], true_index[order]
    num_predicted, num_true = overlap.intersection.shape
    missed = np.setdiff1d(np.arange(num_true), true_index)
    extra = np.setdiff1d(np.arange(num_predicted), pred_index)
    nothing = np.zeros(len(missed) + len(extra), dtype=np.int64)
    return MatchedPairs(
        pred_index=np.concatenate([pred_index, np.full_like(missed, EMPTY), extra]),
        true_index=np.concatenate([true_index, missed, np.full_like(extra, EMPTY)]),
        intersection=np.concatenate([overlap.intersection[pred_index, true_index], nothing]),
        union=np.concatenate(
            [overlap.union[pred_index, true_index], overlap.true_area[missed], overlap.pred_area[extra]]
        ),
        true_area=np.concatenate([overlap.true_area[true_index], overlap.true_area[missed], np.zeros_like(extra)]),
    )
