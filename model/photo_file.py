"""Photo files: whether there is one, whether its size can be true, and its pixels. No torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import InputError
from .files import is_file
from .values import shorten

# Silent: what cannot be decoded is told in our words. OpenCV 4 has the function outside of cv2.utils.
getattr(cv2.utils, "logging", cv2).setLogLevel(0)  # pyright: ignore[reportAttributeAccessIssue]

MAX_SIDE = 65_535  # of a JPEG
# What Pillow opens. A header of a few bytes can claim any size; a photo of this one takes half a GiB.
MAX_PIXELS = 178_956_970
# Up to _QUICK pixels are decoded in a second. A file of a few kB that claims more is damaged: not even a PNG of one bit
# per pixel, all of one color, is this dense.
_QUICK = 2**24
_PIXELS_PER_BYTE = 10_000


def check_size(height: Any, width: Any, *, where: str) -> None:
    """Hold a recorded size to what a photo can have, before anything of that size is made.

    Raises:
        InputError: if a side is no whole number from 1 to ``MAX_SIDE``, or there are more than ``MAX_PIXELS`` pixels.
    """
    sides = (height, width)
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides) or height * width > MAX_PIXELS:
        raise InputError(
            f"{where}: the photo is recorded as height x width {shorten(height)} x {shorten(width)}; expected whole "
            f"numbers from 1 to {MAX_SIDE:,}, at most {MAX_PIXELS:,} pixels together. Correct the annotation",
            reason="photo without size",
        )


def open_photo(path: Path, what: str = "image") -> Image.Image:
    """Read the header of a photo; nothing is decoded.

    Args:
        what: names the kind of file in messages, and in the reason.
    Raises:
        InputError: if there is no such file, it is no picture, or it claims more than ``MAX_PIXELS`` pixels, or more
            than its bytes can hold.
    """
    if not is_file(path):
        raise InputError(f"{what} {path} does not exist; check the path", reason=f"{what} missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # photos of 90 million pixels exist
            photo = Image.open(path)
        check_size(photo.height, photo.width, where=f"{what} {path}")
    except UnidentifiedImageError as err:
        raise _unreadable(path, what, "it is not a picture, or its header is damaged") from err
    except (InputError, Image.DecompressionBombError) as err:
        limits = f"{MAX_SIDE:,} pixels per side or {MAX_PIXELS:,} together"
        raise _unreadable(path, what, f"its header claims more than {limits}") from err
    except Exception as err:  # Pillow's readers of the formats raise nearly anything for a damaged header
        raise _unreadable(path, what, f"{type(err).__name__}: {err}") from err
    pixels, size = photo.height * photo.width, path.stat().st_size
    if pixels > max(_QUICK, _PIXELS_PER_BYTE * size):
        claims = f"its header claims {photo.height} x {photo.width} pixels, but it has {size} bytes"
        photo.close()
        raise _unreadable(path, what, claims)
    return photo


def read_image(path: str | Path, *, as_stored: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 RGB; gray, CMYK and 16-bit photos are converted, transparency is left out.

    Args:
        as_stored: leave out the rotation that the photo's EXIF data ask for. Annotation files of datasets speak of
            the stored rows and columns; a user speaks of what a viewer shows.
    Raises:
        InputError: if there is no such file, or it is not a picture that can be decoded.
    """
    path = Path(path)
    open_photo(path).close()
    data = np.fromfile(path, dtype=np.uint8)
    flags = cv2.IMREAD_COLOR_RGB | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error:
        image = None
    if image is None:
        raise InputError(
            f"image {path} cannot be decoded ({data.size} bytes); copy it again from its source",
            reason="image unreadable",
        )
    return image


def _unreadable(path: Path, what: str, problem: str) -> InputError:
    return InputError(
        f"{what} {path} cannot be decoded ({problem}); copy it again from its source", reason=f"{what} unreadable"
    )
