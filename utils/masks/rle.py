"""Masks of a photo, back from the run lengths that ``model/rle.py`` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from .rasterize import decode_segmentation


class RunLengths(TypedDict):
    """A mask as ``model.rle.encode_rle`` writes it; ``size`` is [height, width]."""

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    counts: str


def decode_rles(codes: Sequence[RunLengths | dict[str, Any]], *, hw: tuple[int, int]) -> np.ndarray:
    """Decode the masks of one photo.

    Args:
        codes: M of them, as ``model.rle.encode_rle`` writes them; M may be 0.
        hw: (H, W) of the photo.
    Returns:
        (M, H, W) bool.
    Raises:
        InputError: if a code is damaged, or recorded for another size.
    """
    masks = np.zeros((len(codes), *hw), dtype=bool)
    for number, code in enumerate(codes):
        masks[number] = decode_segmentation(code, hw, where=f"mask {number}")
    return masks
