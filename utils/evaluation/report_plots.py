"""What the plots of a report show: counts and means, computed here and drawn by the page. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .scores import ScoredQuestion, num_targets

_NUM_BINS = 20
_SIZES = (0.0, 0.005, 0.02, 0.1, 0.3)  # shares of the photo at which a group of targets begins
_SIZE_NAMES = ("below 0.5 %", "0.5 to 2 %", "2 to 10 %", "10 to 30 %", "30 % or more")
_MOST_TARGETS = 6  # questions with more of them stand together
_TARGET_NAMES = (*map(str, range(_MOST_TARGETS)), f"{_MOST_TARGETS} or more")
ORDER = (*_SIZE_NAMES, *_TARGET_NAMES)  # of groups in a plot


def plots(questions: Sequence[ScoredQuestion]) -> dict[str, Any]:
    """Plain data of three plots.

    Returns:
        ``ious``: pairs by IoU, in steps of 1 / 20. ``sizes``: mean IoU of the true masks by their share of the photo.
        ``targets``: mean score of the questions by their number of targets. The last two are lists of
        [name, mean, how many it is the mean of], without empty groups.
    """
    ious = np.concatenate([np.zeros(0), *(one.pairs.iou for one in questions)])
    counts, _ = np.histogram(ious, bins=_NUM_BINS, range=(0, 1))
    return {"ious": counts.tolist(), "sizes": _by_size(questions), "targets": _by_targets(questions)}


def _by_size(questions: Sequence[ScoredQuestion]) -> list[list[Any]]:
    groups: list[list[float]] = [[] for _ in _SIZES]
    for one in questions:
        shares = one.pairs.true_area / (one.record.size[0] * one.record.size[1])
        places = np.searchsorted(_SIZES, shares, side="right") - 1
        for place, share, iou in zip(places.tolist(), shares.tolist(), one.pairs.iou.tolist(), strict=True):
            if share:
                groups[place].append(iou)
    return _means(zip(_SIZE_NAMES, groups, strict=True))


def _by_targets(questions: Sequence[ScoredQuestion]) -> list[list[Any]]:
    groups: list[list[float]] = [[] for _ in _TARGET_NAMES]
    for one in questions:
        if one.score is not None:
            groups[min(num_targets(one.record), _MOST_TARGETS)].append(one.score)
    return _means(zip(_TARGET_NAMES, groups, strict=True))


def _means(groups: Any) -> list[list[Any]]:
    return [[name, round(float(np.mean(values)), 4), len(values)] for name, values in groups if values]
