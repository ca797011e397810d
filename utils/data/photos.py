"""What a source needs of a photo's file without decoding it, and label maps.

Shapes: H, W size of the photo as stored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import InputError


def photo_hw(path: Path) -> tuple[int, int]:
    """(H, W) as stored, from the header alone: a rotation in the EXIF data is left out, as in annotation files."""
    with _open(path, "image") as photo:
        return photo.height, photo.width


def read_label_map(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16, the numbers in a PNG: of a palette image its indices, never its colors."""
    with _open(path, "label map") as image:
        if image.mode not in ("L", "P", "1", "I;16", "I"):
            raise InputError(
                f"label map {path} has colors (mode {image.mode}); expected one number per pixel. "
                "Copy it again from its source, or convert it with the dataset's own tool",
                reason="label map with colors",
            )
        try:
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError) as err:
            raise _damaged(path, "label map", err) from err


def _open(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist; check the path and --dataset_dir", reason=f"{what} missing")
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise _damaged(path, what, err) from err


def _damaged(path: Path, what: str, err: Exception) -> InputError:
    return InputError(
        f"{what} {path} cannot be decoded ({type(err).__name__}: {err}); copy it again from its source",
        reason=f"{what} unreadable",
    )
