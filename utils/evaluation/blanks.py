"""Predicted masks that show nothing: empty ones, and ones that cover the whole photo.

Shapes: B images, N_b masks of an image, H_b, W_b its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Blanks:
    """How many predictions show nothing, of those whose true mask does.

    Attributes:
        num_true: true masks that are neither empty nor the whole photo.
        empty, full: predictions for them that are empty, and that cover the whole photo.
    """

    num_true: int = 0
    empty: int = 0
    full: int = 0

    def __add__(self, other: Blanks) -> Blanks:
        return Blanks(self.num_true + other.num_true, self.empty + other.empty, self.full + other.full)

    @property
    def share(self) -> float:
        """0 before the first mask."""
        return (self.empty + self.full) / max(self.num_true, 1)


def count_blanks(areas: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
    """The three numbers of ``Blanks``, on the device of the masks, which is not waited for.

    Args:
        areas: B tensors (N_b,) long, pixels that each prediction takes.
        masks: the true ones, (N_b, H_b, W_b) bool; B is at least 1.
    Returns:
        (3,) long.
    """
    counts = []
    for area, true in zip(areas, masks, strict=True):
        whole = true.shape[1] * true.shape[2]
        true_area = true.sum((1, 2))
        shows = (true_area > 0) & (true_area < whole)
        counts.append(torch.stack([shows.sum(), (shows & (area == 0)).sum(), (shows & (area == whole)).sum()]))
    return torch.stack(counts).sum(0)
