"""Photo -> network input, and network masks -> photo: one definition for training, evaluation and chat.

Shapes: R input side in pixels; H, W size of the photo as stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import InputError
from .photo_file import read_image

Photo = np.ndarray | Image.Image | str | Path
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# With padding on, the release normalizes by these (0..255 units), whatever its preprocessor JSON says.
RELEASED_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
RELEASED_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


def photo_pixels(photo: Photo) -> np.ndarray:
    """(H, W, 3) uint8 RGB of whatever holds a photo; PIL images are taken as they are, a file as viewers show it.

    Raises:
        InputError: if a file cannot be read, or an array is no photo.
    """
    if isinstance(photo, str | Path):
        return read_image(photo)
    if isinstance(photo, Image.Image) and photo.mode.startswith("I"):  # 16 bits per pixel, which Pillow would cut off
        photo = Image.fromarray((np.asarray(photo) // 256).clip(0, 255).astype(np.uint8))
    pixels = np.asarray(photo.convert("RGB")) if isinstance(photo, Image.Image) else photo
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(f"a photo is {pixels.dtype} of shape {pixels.shape}; expected uint8 of shape (H, W, 3)")
    return pixels


@dataclass(frozen=True)
class ImagePlace:
    """Where a photo is in the network's input.

    Attributes:
        valid_hw: rows and columns of the input that show the photo.
        region: (top, left, height, width) of the photo that the input shows, in photo pixels.
        photo_hw: (H, W).
    """

    valid_hw: tuple[int, int]
    region: tuple[int, int, int, int]
    photo_hw: tuple[int, int]

    def crop_masks(self, masks: np.ndarray) -> np.ndarray:
        """(M, H, W) masks of the photo -> (M, h, w) masks of the region that the input shows."""
        top, left, height, width = self.region
        return masks[:, top : top + height, left : left + width]

    def put_back(self, masks: Tensor, *, outside: float) -> Tensor:
        """(N, h, w) masks of the region -> (N, H, W) masks of the photo, ``outside`` where the input is blind."""
        top, left, height, width = self.region
        if (height, width) == self.photo_hw:
            return masks
        placed = masks.new_full((len(masks), *self.photo_hw), outside)
        placed[:, top : top + height, left : left + width] = masks
        return placed


@dataclass(frozen=True)
class ImageInput(ImagePlace):
    """A photo ready for the network.

    Attributes:
        pixel_values: (3, R, R) float32.
    """

    pixel_values: Tensor


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resize, normalize, and pad (``pad=True``) or center-crop (``pad=False``, CLIP's own way).

    Args:
        size: R; what is left over when the tower's patches divide it is seen by no patch (512 px preset).
        mean, std: per channel, for pixel values in 0..1.
    """

    size: int
    pad: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: np.ndarray) -> ImageInput:
        """Prepare a (H, W, 3) uint8 RGB photo."""
        place = self.place(image.shape[:2])
        height, width = self._resized_hw(place.photo_hw)
        method = Image.Resampling.BILINEAR if self.pad else Image.Resampling.BICUBIC
        resized = np.asarray(Image.fromarray(image).resize((width, height), method))
        top, left = (0, 0) if self.pad else ((height - self.size) // 2, (width - self.size) // 2)
        shown = resized[top : top + self.size, left : left + self.size]
        return ImageInput(place.valid_hw, place.region, place.photo_hw, self._normalize(shown))

    def place(self, photo_hw: tuple[int, int]) -> ImagePlace:
        """Where a photo of that size is in the input."""
        height, width = photo_hw
        resized_hw = self._resized_hw(photo_hw)
        if self.pad:
            return ImagePlace(resized_hw, (0, 0, height, width), photo_hw)
        side = min(photo_hw)
        scale = self.size / side
        top, left = (resized_hw[0] - self.size) // 2, (resized_hw[1] - self.size) // 2
        region = (min(round(top / scale), height - side), min(round(left / scale), width - side), side, side)
        return ImagePlace((self.size, self.size), region, photo_hw)

    def _resized_hw(self, photo_hw: tuple[int, int]) -> tuple[int, int]:
        height, width = photo_hw
        if self.pad:
            scale = self.size / max(photo_hw)
            return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
        scale = self.size / min(photo_hw)
        return max(self.size, int(height * scale)), max(self.size, int(width * scale))

    def _normalize(self, image: np.ndarray) -> Tensor:
        """(h, w, 3) uint8 -> (3, R, R), zero at the bottom and the right. Zero is the mean color."""
        pixels = np.zeros((3, self.size, self.size), dtype=np.float32)
        shown = pixels[:, : image.shape[0], : image.shape[1]]
        np.copyto(shown, image.transpose(2, 0, 1))
        shown -= np.asarray(self.mean, dtype=np.float32)[:, None, None] * 255
        shown /= np.asarray(self.std, dtype=np.float32)[:, None, None] * 255
        return torch.from_numpy(pixels)


def patch_valid_mask(valid_hw: Tensor, *, size: int, grid: int) -> Tensor:
    """Which cells of a grid over the input show at least one pixel of the photo.

    Args:
        valid_hw: (B, 2) rows and columns that show the photo.
        size: pixels per side that the grid covers, from the top left.
        grid: cells per side.
    Returns:
        (B, grid, grid) bool.
    """
    starts = torch.arange(grid, device=valid_hw.device) * size / grid
    rows = starts[None] < valid_hw[:, :1]
    columns = starts[None] < valid_hw[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True)
class RowResize:
    """Logits of one size -> rows of a photo, and the way back of a gradient; all in float32.

    Bilinear interpolation treats rows and columns alike and apart, so it is two matrix products, R logits C^T. The way
    back is R^T gradient C.

    Attributes:
        rows: R, (H, h); columns: C, (W, w).
        reach: H pairs, first and end of the rows of logits that a row of the photo is made of.
    """

    rows: Tensor
    columns: Tensor
    reach: Sequence[tuple[int, int]]

    def resized(self, logits: Tensor, block: slice) -> Tensor:
        """(N, h, w) -> (N, r, W), so many rows of the photo."""
        rows, source = self._part(block)
        return rows @ logits[:, source].float() @ self.columns.T

    def add_gradient(self, total: Tensor, gradient: Tensor, block: slice) -> None:
        """Add to ``total`` (N, h, w), float32, what the gradient (N, r, W) of a block of rows comes to."""
        rows, source = self._part(block)
        total[:, source].add_(rows.T @ (gradient @ self.columns))

    def _part(self, block: slice) -> tuple[Tensor, slice]:
        source = slice(self.reach[block.start][0], self.reach[block.stop - 1][1])
        return self.rows[block, source], source


class SameSize:
    """What ``RowResize`` is for logits that have the size of the photo."""

    def resized(self, logits: Tensor, block: slice) -> Tensor:
        """(N, H, W) -> (N, r, W) float32, which may share memory with the argument."""
        return logits[:, block].float()

    def add_gradient(self, total: Tensor, gradient: Tensor, block: slice) -> None:
        """Add the gradient (N, r, W) of a block of rows to ``total`` (N, H, W)."""
        total[:, block].add_(gradient)


@dataclass(frozen=True)
class PhotoResize:
    """``resize_logits`` for one image, by rows; the arguments are the same."""

    size: int
    valid_hw: tuple[int, int]
    out_hw: tuple[int, int]

    def of(self, logits: Tensor) -> RowResize:
        """For logits (N, h, w) of this shape, on their device."""
        rows, columns = (
            _line(side, self.size, valid, out, device=logits.device)
            for side, valid, out in zip(logits.shape[1:], self.valid_hw, self.out_hw, strict=True)
        )
        return RowResize(rows, columns, _reach(logits.shape[1], self.size, self.valid_hw[0], self.out_hw[0]))


def _line(low: int, size: int, valid: int, out: int, *, device: torch.device) -> Tensor:
    """(out, low): what ``resize_logits`` does to a row or a column."""
    full = F.interpolate(torch.eye(low, device=device)[None], size, mode="linear", align_corners=False)
    if valid > size:
        full = F.pad(full, (0, valid - size), mode="replicate")
    return F.interpolate(full[..., :valid], out, mode="linear", align_corners=False)[0].T.contiguous()


def _reach(low: int, size: int, valid: int, out: int) -> list[tuple[int, int]]:
    """Where the numbers of each row of ``_line`` that are not zero begin and end, or a place beside it.

    It is computed from the sizes, so that no GPU is asked.
    """

    def source(place: int, before: int, after: int) -> int:
        return math.floor((place + 0.5) * before / after - 0.5)

    found = []
    for row in range(out):
        pixel = source(row, valid, out)
        first, last = source(min(pixel, size) - 1, low, size), source(min(pixel + 2, size), low, size) + 1
        found.append((max(0, min(first, low - 1)), min(low, max(last, 0) + 1)))
    return found


def photo_resizers(valid_hw: Tensor, orig_hw: Sequence[tuple[int, int]], *, size: int) -> list[PhotoResize]:
    """``resize_logits`` for each of B images.

    Args:
        valid_hw: (B, 2), on the CPU, so that no GPU is waited for.
    """
    places = zip(valid_hw.tolist(), orig_hw, strict=True)
    return [PhotoResize(size, (valid[0], valid[1]), out) for valid, out in places]


def resize_logits(logits: Tensor, *, size: int, valid_hw: tuple[int, int], out_hw: tuple[int, int]) -> Tensor:
    """Low-resolution mask logits of the padded input -> logits at the size of the photo's region.

    (N, h, w) -> upsample to (N, size, size), cut the padding, resize to (N, *out_hw); bilinear, in float32.

    Args:
        size: pixels per side that the tower's patches cover; beyond them, less than a patch, the border goes on.
    """
    if logits.shape[0] == 0:  # no pixels, but still in the graph: every rank must touch every trained parameter
        return logits.new_zeros((0, *out_hw), dtype=torch.float32) + logits.float().sum()
    full = F.interpolate(logits[:, None].float(), (size, size), mode="bilinear", align_corners=False)
    below, beside = (max(0, valid - size) for valid in valid_hw)
    if below or beside:
        full = F.pad(full, (0, beside, 0, below), mode="replicate")
    valid = full[..., : valid_hw[0], : valid_hw[1]]
    return F.interpolate(valid, out_hw, mode="bilinear", align_corners=False)[:, 0]
