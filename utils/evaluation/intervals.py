"""95 % intervals of gIoU and cIoU: how much they would vary with other images of the same kind.

Both scores are ratios of sums, and the questions about one image are no independent draws. So the images are taken as
the draws, and the ratio as linear in their sums (the linearized ratio estimator of survey statistics). With a_k and b_k
the sums of image k, K images, and R = sum of a_k / sum of b_k:

    variance of R = K / (K - 1) * sum of (a_k - R * b_k)^2 / (sum of b_k)^2

and the interval is R plus and minus the 97.5 % point of Student's t with K - 1 degrees of freedom times its root. It is
a closed form without random numbers. Where every image scores the same it has no width.

Shapes: n questions, K images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

_UPPER = 0.975  # and as much below: 95 % between


@dataclass(frozen=True)
class Terms:
    """What questions add to both sides of a ratio.

    Attributes:
        numerators, denominators: (n,) float64; pixel counts in them are exact up to 2**53.
    """

    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def ratio(self) -> float | None:
        """None without anything to divide by."""
        whole = self.denominators.sum()
        return float(self.numerators.sum() / whole) if whole else None


def interval(terms: Terms, images: Sequence[str]) -> list[float] | None:
    """[low, high] of a ratio within 0 and 1; None if fewer than 2 images add to it.

    Args:
        images: n names; questions of the same name are about the same image.
    """
    deviations, counts = _deviations(terms, images)
    return _around(terms.ratio, deviations[counts], lowest=0.0)


def difference_interval(one: Terms, other: Terms, images: Sequence[str]) -> list[float] | None:
    """[low, high] of the first ratio less the second, of two answers to the same n questions.

    An image counts in both, so that what makes it hard for both cancels out. None if fewer than 2 images add to them.
    """
    if one.ratio is None or other.ratio is None:
        return None
    (of_one, in_one), (of_other, in_other) = _deviations(one, images), _deviations(other, images)
    return _around(one.ratio - other.ratio, (of_one - of_other)[in_one | in_other], lowest=-1.0)


def _deviations(terms: Terms, images: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How far each image moves the ratio, (K,) float64, and whether it adds to it at all, (K,) bool."""
    _, cluster = np.unique(np.array(images, dtype=str), return_inverse=True)
    numerators = np.bincount(cluster, weights=terms.numerators)
    denominators = np.bincount(cluster, weights=terms.denominators)
    counts = denominators > 0
    if terms.ratio is None:
        return np.zeros(len(counts)), counts
    return (numerators - terms.ratio * denominators) / denominators.sum(), counts


def _around(ratio: float | None, deviations: np.ndarray, *, lowest: float) -> list[float] | None:
    count = len(deviations)
    if ratio is None or count < 2:
        return None
    half = float(stdtrit(count - 1, _UPPER)) * float(np.sqrt(count / (count - 1) * (deviations**2).sum()))
    return [max(lowest, ratio - half), min(1.0, ratio + half)]
