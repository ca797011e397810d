"""The size of a photo without decoding it, and label maps.

Shapes: H, W size of the photo as stored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import InputError

_ORIENTATION, _LYING = 0x0112, 5  # EXIF's tag of the orientation; values from 5 on swap height and width
_WITH_ALPHA = ("LA", "RGBA")


def photo_hw(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """(H, W) from the header alone, as stored: the EXIF rotation is ignored, as in annotation files.

    Args:
        upright: the size as displayed instead; ``model.image.read_image`` returns the same size.
    Raises:
        InputError: if the photo does not exist or its header cannot be read.
    """
    with _open(path, "image") as photo:
        # Asking a PNG for EXIF that it does not announce would decode it.
        turned = upright and "exif" in photo.info and photo.getexif().get(_ORIENTATION, 1) >= _LYING
        return (photo.width, photo.height) if turned else (photo.height, photo.width)


def read_label_map(path: Path) -> np.ndarray:
    """(H, W) integers (bool for a 1-bit image), the values of a PNG: palette indices, never colors.

    Gray that is stored as three equal channels is read, too.

    Raises:
        InputError: if the file does not exist, cannot be decoded, or has colors or transparency.
    """
    with _open(path, "label map") as image:
        try:
            values = np.asarray(image)
        except (OSError, SyntaxError, ValueError) as err:
            raise _damaged(path, "label map", err) from err
    if image.mode in ("L", "P", "1", "I;16", "I"):
        return values
    alpha = values[:, :, -1] if image.mode in _WITH_ALPHA else None
    values = values if alpha is None else values[:, :, :-1]
    clear = alpha is not None and (alpha < 255).any()
    if clear or (values != values[:, :, :1]).any():
        raise InputError(
            f"label map {path} has {'transparency' if clear else 'colors'} (mode {image.mode}); expected one number "
            "per pixel. Copy it again from its source, or convert it with the dataset's own tool",
            reason="label map with colors",
        )
    return values[:, :, 0]


def _open(path: Path, what: str) -> Image.Image:
    if not path.is_file():
        raise InputError(f"{what} {path} does not exist; check the path", reason=f"{what} missing")
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise _damaged(path, what, err) from err


def _damaged(path: Path, what: str, err: Exception) -> InputError:
    return InputError(
        f"{what} {path} cannot be decoded ({type(err).__name__}: {err}); copy it again from its source",
        reason=f"{what} unreadable",
    )
