"""Which predicted mask answers which true mask of a question: one to one, by IoU.

Shapes: P predicted masks, G true masks, n pairs, H, W size of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .metrics import pair_iou, pairwise_overlap

EMPTY = -1


@dataclass(frozen=True)
class MatchedPairs:
    """The n = max(P, G) pairs of one question: matched ones by true index, then missed truths, then extras.

    Attributes:
        pred_index: (n,) int64 predicted mask of the pair, ``EMPTY`` where the truth was missed.
        true_index: (n,) int64 true mask of the pair, ``EMPTY`` where the prediction is extra.
        intersection, union: (n,) int64 pixels.
    """

    pred_index: np.ndarray
    true_index: np.ndarray
    intersection: np.ndarray
    union: np.ndarray

    @property
    def is_extra(self) -> np.ndarray:
        """(n,) bool, predictions that no true mask is left for."""
        return self.true_index == EMPTY

    @property
    def iou(self) -> np.ndarray:
        """(n,) float64, 0 for an extra prediction even when it is empty (see metrics.py)."""
        return np.where(self.is_extra, 0.0, pair_iou(self.intersection, self.union))


def match_masks(predicted: np.ndarray, true: np.ndarray) -> MatchedPairs:
    """Pair the masks of one question so that the sum of IoUs is highest (Hungarian algorithm).

    A missed truth is paired with an empty prediction and an extra prediction with an empty truth, as in the
    paper's MUSE evaluation. The release matches on BCE + DICE at 12544 unseeded random points, so its pairs
    change from run to run; IoU needs no randomness and is what is reported afterwards.

    Args:
        predicted: (P, H, W) bool.
        true: (G, H, W) bool.
    """
    intersection, union = pairwise_overlap(predicted, true)
    pred_index, true_index = linear_sum_assignment(pair_iou(intersection, union), maximize=True)
    order = np.argsort(true_index)
    pred_index, true_index = pred_index[order], true_index[order]
    missed = np.setdiff1d(np.arange(len(true)), true_index)
    extra = np.setdiff1d(np.arange(len(predicted)), pred_index)
    no_intersection = np.zeros(len(missed) + len(extra), dtype=np.int64)
    return MatchedPairs(
        pred_index=np.concatenate([pred_index, np.full_like(missed, EMPTY), extra]),
        true_index=np.concatenate([true_index, missed, np.full_like(extra, EMPTY)]),
        intersection=np.concatenate([intersection[pred_index, true_index], no_intersection]),
        union=np.concatenate(
            [union[pred_index, true_index], true[missed].sum(axis=(1, 2)), predicted[extra].sum(axis=(1, 2))]
        ),
    )
