"""Records of answered questions, made of masks that a test draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.rle import encode_rle
from utils.evaluation.records import QuestionRecord

HW = (6, 10)


def box(top: int, left: int, bottom: int, right: int, *, hw: tuple[int, int] = HW) -> np.ndarray:
    """(H, W) bool: rows ``top`` to ``bottom``, columns ``left`` to ``right``, the last ones not included."""
    mask = np.zeros(hw, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def answered(
    predicted: Sequence[np.ndarray], true: Sequence[np.ndarray], *, ignored: np.ndarray | None = None, **changed: Any
) -> QuestionRecord:
    """A record of these (H, W) bool masks; other fields can be given, too."""
    masks = [*predicted, *true]
    values: dict[str, Any] = {
        "benchmark": "Drawn|val",
        "protocol": "generate",
        "index": 0,
        "conversation": 0,
        "sample_id": "photo",
        "image": f"{changed.get('index', 0)}.png",
        "upright": False,
        "size": masks[0].shape if masks else HW,
        "question": "Where are they?",
        "kind": "",
        "has_target": bool(true),
        "names": ("",) * len(true),
        "true_masks": tuple(encode_rle(mask) for mask in true),
        "ignored": None if ignored is None else encode_rle(ignored),
        "answer": "Here.",
        "numbered": "Here.",
        "reason": None,
        "phrases": ("",) * len(predicted),
        "confidences": (1.0,) * len(predicted),
        "predictions": tuple(encode_rle(mask) for mask in predicted),
    }
    return QuestionRecord(**(values | changed))
