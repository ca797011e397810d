"""Masks compared as run lengths: areas and overlaps without drawing a pixel.

Shapes: R runs, M masks, S segments, H, W size of the photo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.errors import InputError
from model.photo_file import check_size
from model.values import shorten

DOWNLOAD_AGAIN = "download the annotations again"
_MOST_CHARACTERS = 8  # of one run: 40 bits, more than any photo has pixels


@dataclass(frozen=True)
class Segments:
    """The pixels of a photo, column after column, cut wherever one of M masks begins or ends.

    Attributes:
        inside: (M, S) bool, whether a segment belongs to a mask.
        lengths: (S,) int64 pixels; their sum is H * W.
    """

    inside: np.ndarray
    lengths: np.ndarray


def cut_into_segments(
    codes: Sequence[Mapping[str, Any]], hw: tuple[int, int], *, where: str, remedy: str = DOWNLOAD_AGAIN
) -> Segments:
    """Lay the masks of one photo over each other.

    Args:
        codes: M of them, as ``read_runs`` takes them; M may be 0.
        hw: (H, W) of the photo.
        where: for messages, such as the question; remedy: what to do about damage.
    Raises:
        InputError: if a code is damaged, or recorded for another size.
    """
    check_size(*hw, where=where)
    ends = [
        np.cumsum(read_runs(code, hw, where=f"{where}: mask {number}", remedy=remedy))
        for number, code in enumerate(codes)
    ]
    cuts = np.unique(np.concatenate([*ends, [0, hw[0] * hw[1]]]))
    inside = np.zeros((len(codes), len(cuts) - 1), dtype=bool)
    for row, ends_of_runs in zip(inside, ends, strict=True):
        # The first run is outside the mask, the second inside, and so on.
        row[:] = np.searchsorted(ends_of_runs, cuts[:-1], side="right") % 2
    return Segments(inside, np.diff(cuts).astype(np.int64))


def read_runs(code: Mapping[str, Any], hw: tuple[int, int], *, where: str, remedy: str = DOWNLOAD_AGAIN) -> np.ndarray:
    """The runs of a mask, column after column, outside and inside by turns.

    Args:
        code: ``{"size": [H, W], "counts": ...}`` as COCO has it: compressed (str or bytes) or not (list).
        hw: (H, W) of the photo.
        where: annotation, for messages; remedy: what to do about damage.
    Returns:
        (R,) int64, whose sum is H * W.
    Raises:
        InputError: if it is nothing of the kind, damaged, or recorded for another size.
    """
    if "size" not in code or "counts" not in code:
        raise unknown_format(code, where)
    size, counts = code["size"], code["counts"]
    if not isinstance(size, (list, tuple)) or not all(type(side) is int for side in size):
        raise unknown_format(code, where)
    if tuple(size) != tuple(hw):
        raise InputError(
            f"{where}: the mask's size is {shorten(list(size))}, the photo's {list(hw)} (height, width); "
            "the annotation belongs to another version of the photo",
            reason="mask of another size",
        )
    try:
        runs = _decompress(counts) if isinstance(counts, (str, bytes)) else _check_numbers(counts)
    except (OverflowError, TypeError, ValueError) as err:
        raise InputError(f"{where}: its run lengths cannot be read; {remedy}", reason="bad run lengths") from err
    # pycocotools does not notice runs that end early: it returns whatever was in memory behind them.
    num_pixels = hw[0] * hw[1]
    if ((runs < 0) | (runs > num_pixels)).any() or runs.sum() != num_pixels:
        raise InputError(
            f"{where}: its run lengths cover {shorten(sum(runs.tolist()))} pixels, expected {hw[0]} x {hw[1]}; "
            f"{remedy}",
            reason="bad run lengths",
        )
    return runs


def unknown_format(found: Any, where: str) -> InputError:
    """What to raise for a segmentation that is none."""
    return InputError(
        f"{where}: the segmentation {shorten(found)} is not in COCO's format; expected "
        'polygons [[x, y, x, y, x, y, ...], ...] or run lengths {"size": [H, W], "counts": ...}',
        reason="unknown mask format",
    )


def _check_numbers(counts: Any) -> np.ndarray:
    runs = list(counts)
    if not set(map(type, runs)) <= {int}:
        raise ValueError("they are not whole numbers")
    return np.array(runs, dtype=np.int64)


def _decompress(text: str | bytes) -> np.ndarray:
    """COCO's compressed run lengths: 5 bits a character; from the fourth run on, differences to the run before last.

    Returns:
        (R,) int64.
    Raises:
        ValueError: if the text is nothing of the kind.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    if not data:
        return np.zeros(0, dtype=np.int64)
    bits = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if ((bits < 0) | (bits >= 64)).any():
        raise ValueError("a character continues no run")
    last = np.flatnonzero(bits & 0x20 == 0)  # characters that end a run
    if not len(last) or last[-1] != len(bits) - 1:
        raise ValueError("the last run is cut off")
    first = np.append(0, last[:-1] + 1)
    num_characters = last - first + 1
    if num_characters.max() > _MOST_CHARACTERS:
        raise ValueError("a run is too long")
    place = np.arange(len(bits)) - np.repeat(first, num_characters)
    runs = np.add.reduceat((bits & 0x1F) << (5 * place), first)
    runs -= np.where(bits[last] & 0x10, 1 << (5 * num_characters), 0)  # the sign
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
