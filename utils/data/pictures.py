"""Picture files as data sources read them: the size of a photo, and the values of a label PNG.

Shapes: H, W size as displayed, that is after the turn that the photo's EXIF asks for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.errors import InputError

_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 lay the photo on its side
_ONE_CHANNEL = ("1", "L", "P", "I", "I;16")
_WITH_ALPHA = ("LA", "RGBA")


def photo_hw(path: Path) -> tuple[int, int]:
    """(H, W) of a photo from its header, without decoding it; ``model.image.read_image`` gives the same size."""
    try:
        with Image.open(path) as photo:
            # Asking a PNG for EXIF that it does not announce would decode it.
            turned = "exif" in photo.info and photo.getexif().get(_ORIENTATION, 1) >= 5
            return (photo.width, photo.height) if turned else (photo.height, photo.width)
    except FileNotFoundError as err:
        raise InputError(f"image {path} does not exist; check the path", reason="file missing") from err
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as err:
        raise InputError(
            f"image {path} cannot be read ({err}); copy it again from its source", reason="photo damaged"
        ) from err


def read_labels(path: Path) -> np.ndarray:
    """(H, W) label values of a PNG: gray values, or the indices of a palette (never its colors).

    Raises:
        InputError: if it is missing, damaged, no PNG (others blur the values), or has colors.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.mode in _ONE_CHANNEL:
                return np.asarray(picture)
            channels = np.asarray(picture)
    except FileNotFoundError as err:
        raise InputError(f"mask {path} does not exist; check the path", reason="file missing") from err
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as err:
        raise InputError(f"mask {path} cannot be read as PNG ({err}); save it again as a PNG of one channel") from err
    gray = channels[:, :, :-1] if picture.mode in _WITH_ALPHA else channels
    clear = picture.mode in _WITH_ALPHA and (channels[:, :, -1] < 255).any()
    if clear or (gray != gray[:, :, :1]).any():
        raise InputError(
            f"mask {path} has {'transparency' if clear else 'colors'} ({picture.mode}); expected gray values or a "
            "palette, one value per object"
        )
    return gray[:, :, 0]
