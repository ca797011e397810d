"""The size of a photo without decoding it, and label maps.

Shapes: H, W size of the photo as stored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import InputError
from model.photo_file import open_photo

_ORIENTATION = 0x0112  # EXIF's tag
_LYING = range(5, 9)  # its values that swap height and width
_WITH_ALPHA = ("LA", "RGBA")
_MAX_VALUE = 65_535  # of a label, as 16 bits hold it


def photo_hw(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """(H, W) from the header alone, as stored: the EXIF rotation is ignored, as in annotation files.

    Args:
        upright: the size as displayed instead; ``model.image.read_image`` returns the same size.
    Raises:
        InputError: if the photo does not exist or its header cannot be read.
    """
    with open_photo(path, "image") as photo:
        # Asking a PNG for EXIF that it does not announce would decode it.
        turned = upright and "exif" in photo.info and _orientation(photo) in _LYING
        return (photo.width, photo.height) if turned else (photo.height, photo.width)


def _orientation(photo: Image.Image) -> int:
    try:
        value = photo.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, which say nothing
        return 1
    return value if isinstance(value, int) else 1


def read_label_map(path: Path) -> np.ndarray:
    """(H, W) integers from 0 to 65,535 (bool for a 1-bit image), the values of a PNG: palette indices, never colors.

    Gray that is stored as three equal channels is read, too.

    Raises:
        InputError: if the file does not exist, cannot be decoded, or has colors or transparency.
    """
    with open_photo(path, "label map") as image:
        try:
            values = np.asarray(image)
        except Exception as err:  # Pillow's decoders raise nearly anything for damaged data
            raise _damaged(path, "label map", err) from err
    if image.mode in ("L", "P", "1", "I;16", "I"):
        if image.mode == "I" and not 0 <= values.min() <= values.max() <= _MAX_VALUE:
            raise InputError(
                f"label map {path} has values from {values.min()} to {values.max()}; expected 0 to {_MAX_VALUE}. "
                "Convert it with the dataset's own tool",
                reason="label map of other numbers",
            )
        return values
    if values.ndim != 3:
        raise InputError(
            f"label map {path} has one {values.dtype} per pixel (mode {image.mode}); expected whole numbers from 0 to "
            f"{_MAX_VALUE}. Convert it with the dataset's own tool",
            reason="label map of other numbers",
        )
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


def _damaged(path: Path, what: str, err: Exception) -> InputError:
    return InputError(
        f"{what} {path} cannot be decoded ({type(err).__name__}: {err}); copy it again from its source",
        reason=f"{what} unreadable",
    )
