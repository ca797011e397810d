"""Scores of gRefCOCO (GRES), as its official evaluator computes them: expressions with several targets or none.

Per expression: P is the predicted mask, G the union of the targets, I = |P and G|, U = |P or G|. Whether there is a
target comes from the annotation, not from pixels.

=====================  ======================  =================
Case                   adds to gIoU            adds to cIoU
=====================  ======================  =================
no target, and said    1                       nothing
no target, not said    0                       U of |P|
target, said "none"    0                       U, and I of 0
target, not said       I / U (0 where U = 0)   I and U
=====================  ======================  =================

The evaluator's model says "no target" with an output of its own. PixelLM says it with an answer that draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

THRESHOLDS = {"pr_70": 0.7, "pr_80": 0.8, "pr_90": 0.9}


@dataclass(frozen=True)
class Expression:
    """One expression and its answer.

    Attributes:
        has_target: whether the annotation says that the photo shows it.
        says_none: whether the answer says that the photo does not.
        intersection, union: I and U in pixels; U is |P| where there is no target.
    """

    has_target: bool
    says_none: bool
    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """What it adds to gIoU."""
        if not self.has_target:
            return float(self.says_none)
        return 0.0 if self.says_none or not self.union else self.intersection / self.union

    @property
    def areas(self) -> tuple[int, int]:
        """What it adds to the two sums of cIoU."""
        if not self.has_target:
            return 0, 0 if self.says_none else self.union
        return 0 if self.says_none else self.intersection, self.union


def score_expressions(expressions: Sequence[Expression], *, whole_set: bool) -> dict[str, float | None]:
    """gIoU, cIoU, N-acc, T-acc and Pr@ of a set, as shares; None where the evaluator would divide by zero.

    Args:
        whole_set: the evaluator gives 0 for N-acc and T-acc of a set in which every expression has a target. Of a
            group of a set, N-acc is None where every expression has a target, and T-acc where none has.
    """
    with_target = [one for one in expressions if one.has_target]
    without = [one for one in expressions if not one.has_target]
    areas = [one.areas for one in expressions]
    scores = {
        "giou": _share(fsum(one.iou for one in expressions), len(expressions)),
        "ciou": _share(sum(inner for inner, _ in areas), sum(outer for _, outer in areas)),
        "n_acc": _share(sum(one.says_none for one in without), len(without)),
        "t_acc": _share(sum(not one.says_none for one in with_target), len(with_target)),
        **{
            name: _share(sum(one.iou >= threshold for one in with_target), len(with_target))
            for name, threshold in THRESHOLDS.items()
        },
    }
    if whole_set and expressions and not without:
        scores |= {"n_acc": 0.0, "t_acc": 0.0}
    return scores


def _share(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
