"""Masks as text: COCO's compressed run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> ``{"size": [H, W], "counts": text}``, COCO's compressed run lengths.

    Raises:
        InputError: without pycocotools.
    """
    try:
        from pycocotools import mask as coco_mask  # answers that are shown alone do not need it
    except ImportError as err:
        raise InputError("run lengths need pycocotools, which is not installed; pip install pycocotools") from err
    code: Any = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
