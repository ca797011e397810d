"""Masks in JSON: COCO's compressed run-length code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .rasterize import decode_segmentation


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> ``{"size": [H, W], "counts": text}``, COCO's compressed run lengths."""
    code: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def decode_rles(codes: Sequence[dict[str, Any]], *, hw: tuple[int, int]) -> np.ndarray:
    """Decode the masks of one photo.

    Args:
        codes: M of them, as ``encode_rle`` writes them; M may be 0.
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
