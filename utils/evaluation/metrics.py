"""How masks are scored: pairs of (predicted, true) masks -> gIoU and cIoU.

Shapes: P predicted masks, G true masks, n pairs, H, W size of the photo. Masks are bool.

A pair scores I / U, the area of the intersection over the area of the union. Over all pairs of a set
    gIoU = mean of I / U            (PixelLM section 4: mean over pairs)
    cIoU = sum of I / sum of U
What counts as a pair is the business of matching.py.

Two empty masks have U = 0. Such a pair scores 1 if it has a true mask: "nothing there" was the right answer.
An *extra* pair, a prediction that no true mask is left for, scores 0 even when it is empty: it announced an
object that is not there. The release gives 1 here, so that every additional empty mask would raise gIoU.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

_BLOCK = 1 << 20


def pairwise_overlap(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas of intersection and union of every predicted mask with every true mask, in pixels.

    Args:
        predicted: (P, H, W) bool; P may be 0.
        true: (G, H, W) bool; G may be 0.
    Returns:
        intersection and union, both (P, G) int64.
    Raises:
        ValueError: if the masks are not bool or differ in size.
    """
    if predicted.dtype != bool or true.dtype != bool:
        raise ValueError(f"masks must be bool, got {predicted.dtype} and {true.dtype}; threshold them first")
    if predicted.shape[1:] != true.shape[1:]:
        raise ValueError(
            f"predicted masks are (H, W)={predicted.shape[1:]} but true masks are {true.shape[1:]}; "
            "compare masks at the size of the photo"
        )
    num_pixels = predicted.shape[1] * predicted.shape[2]
    predicted_flat, true_flat = predicted.reshape(-1, num_pixels), true.reshape(-1, num_pixels)
    intersection = np.zeros((len(predicted), len(true)), dtype=np.int64)
    # Blocks keep the float copies small, and the float32 sums below 2**24, where they are exact.
    for start in range(0, num_pixels, _BLOCK):
        block = slice(start, start + _BLOCK)
        product = predicted_flat[:, block].astype(np.float32) @ true_flat[:, block].astype(np.float32).T
        intersection += product.astype(np.int64)
    areas = predicted_flat.sum(axis=1)[:, None] + true_flat.sum(axis=1)[None, :]
    return intersection, areas - intersection


def pair_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """I / U of each pair, and 1 where both masks are empty; any shape, float64."""
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


@dataclass
class IoUMeter:
    """gIoU and cIoU of the pairs added so far.

    Only counters are stored, so meters joined with ``+`` give what one meter that saw everything gives.
    """

    iou_sum: float = 0.0
    num_pairs: int = 0
    intersection: int = 0
    union: int = 0

    def add(self, predicted: np.ndarray, true: np.ndarray) -> None:
        """Count one pair of (H, W) bool masks."""
        intersection, union = pairwise_overlap(predicted[None], true[None])
        self.add_pairs(intersection[0], union[0])

    def add_pairs(self, intersection: np.ndarray, union: np.ndarray, *, is_extra: np.ndarray | None = None) -> None:
        """Count pairs by their areas.

        Args:
            intersection, union: (n,) pixels.
            is_extra: (n,) bool, predictions without a true mask; default none.
        """
        iou = pair_iou(intersection, union)
        if is_extra is not None:
            iou = np.where(is_extra, 0.0, iou)
        self.iou_sum += float(iou.sum())
        self.num_pairs += len(iou)
        self.intersection += int(intersection.sum())
        self.union += int(union.sum())

    def __add__(self, other: IoUMeter) -> IoUMeter:
        return IoUMeter(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def giou(self) -> float:
        """Mean IoU of the pairs; nan before the first one."""
        return self.iou_sum / self.num_pairs if self.num_pairs else float("nan")

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; nan as long as every mask is empty."""
        return self.intersection / self.union if self.union else float("nan")


@dataclass
class ReleasedMuseMeter:
    """The number that the released ``ar_validate`` calls gIoU on MUSE; comparable with the release only.

    The release sums the IoU of the pairs of all questions of an image (matched per question) and divides by
    max(P, G) with P and G counted over the *image*:

        sum over images of sum of I / U   /   sum over images of max(P, G)

    A question with a mask too many and one with a mask too few cancel out in the divisor, so the number is
    never below the mean over pairs, and empty masks can lift it above 1. Two departures: extra masks are
    thresholded like all others (the release compares their raw logits), and no 1e-5 is added to the divisors.
    """

    iou_sum: float = 0.0
    num_masks: int = 0

    def add_image(self, intersection: np.ndarray, union: np.ndarray, *, num_predicted: int, num_true: int) -> None:
        """Count the (n,) pairs of all questions of one image, which has P and G masks in total."""
        self.iou_sum += float(pair_iou(intersection, union).sum())
        self.num_masks += max(num_predicted, num_true)

    def __add__(self, other: ReleasedMuseMeter) -> ReleasedMuseMeter:
        return ReleasedMuseMeter(self.iou_sum + other.iou_sum, self.num_masks + other.num_masks)

    @property
    def giou(self) -> float:
        """nan before the first mask."""
        return self.iou_sum / self.num_masks if self.num_masks else float("nan")
