"""Scenes as the tower sees them, with what there is to know about every patch.

Shapes: N scenes, B a batch of them, R input side, G patches per side, T = G * G patches, U = 4 cells per
patch side, M = 7 owners: the background (0) and up to 6 objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.image import CLIP_MEAN, CLIP_STD, ImagePreprocessor, patch_valid_mask
from utils.toy_world.painting import COLORS, TEXTURES
from utils.toy_world.parallel import OrderedMap
from utils.toy_world.scene import SIZES, SceneStyle, draw_scene
from utils.toy_world.shapes import SHAPES

PATCH = 14
CELLS = 4
OWNERS = 7
# Class 0 of every trait is the background.
TRAITS: dict[str, tuple[str, ...]] = {"color": COLORS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}
# More objects per picture than the dataset, and every look equally often: more to learn from each picture.
_STYLE = SceneStyle(num_objects=(3, 6), num_colors=(3, 6), num_shapes=(3, 5), num_textures=(3, 3))


@dataclass(frozen=True)
class RawView:
    """A scene as numbers: what a worker process sends back.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        owners: (H, W) uint8, which object each pixel shows; 0 is the background.
        traits: (M, 4) int, index into ``TRAITS`` plus one.
        centers: (M, 2) float, as shares of width and height.
    """

    image: np.ndarray
    owners: np.ndarray
    traits: np.ndarray
    centers: np.ndarray


@dataclass(frozen=True)
class PatchTargets:
    """What is true of each patch of B scenes. A patch belongs to whoever owns most of its cells.

    Attributes:
        valid: (B, T) bool, whether the patch shows any of the picture.
        traits: (B, T, 4) class of each trait of the owner, 0 for the background.
        centers: (B, T, 4) center (x, y) of the owner in shares of the padded square, then of the picture.
        foreground: (B, T, U * U) whether a cell shows any object; own: whether it shows the owner.
    """

    valid: Tensor
    traits: Tensor
    centers: Tensor
    foreground: Tensor
    own: Tensor

    @property
    def on_object(self) -> Tensor:
        """(B, T) bool."""
        return self.valid & (self.traits[..., 0] > 0)


def draw_view(index: int, *, seed: int, stream: int) -> RawView:
    """Scene number ``index`` of a stream."""
    scene = draw_scene(np.random.default_rng([seed, stream, index]), _STYLE)
    owners = np.zeros(scene.image.shape[:2], np.uint8)
    traits, centers = np.zeros((OWNERS, len(TRAITS)), np.int64), np.zeros((OWNERS, 2), np.float32)
    for number, item in enumerate(scene.objects, start=1):
        owners[item.mask] = number
        traits[number] = [names.index(getattr(item, trait)) + 1 for trait, names in TRAITS.items()]
        centers[number] = item.center
    return RawView(scene.image, owners, traits, centers)


class Views:
    """N scenes, preprocessed as in training, ready to be drawn in batches."""

    def __init__(self, count: int, *, seed: int, stream: int, image_size: int, ordered_map: OrderedMap) -> None:
        self.image_size = image_size
        self.grid = image_size // PATCH
        preprocess = ImagePreprocessor(image_size, pad=True, mean=CLIP_MEAN, std=CLIP_STD)
        self.pixels = torch.zeros(count, 3, image_size, image_size, dtype=torch.float16)
        self.valid_hw = torch.zeros(count, 2, dtype=torch.long)
        self.owners = torch.zeros(count, self.grid * CELLS, self.grid * CELLS, dtype=torch.uint8)
        self.traits = torch.zeros(count, OWNERS, len(TRAITS), dtype=torch.long)
        self.centers = torch.zeros(count, OWNERS, 4)
        raw_views = ordered_map(partial(draw_view, seed=seed, stream=stream), range(count))
        for index, raw in enumerate(raw_views):
            image = preprocess(raw.image)
            self.pixels[index] = image.pixel_values
            self.valid_hw[index] = torch.tensor(image.valid_hw)
            self.owners[index] = self._sample_owners(raw.owners)
            self.traits[index] = torch.from_numpy(raw.traits)
            height, width = raw.image.shape[:2]
            shares = np.array([width, height]) / max(height, width)
            centers = np.concatenate([raw.centers * shares, raw.centers], axis=1)
            self.centers[index] = torch.from_numpy(centers)

    def __len__(self) -> int:
        return len(self.pixels)

    def _sample_owners(self, owners: np.ndarray) -> Tensor:
        """(H, W) owners of pixels -> (G * U, G * U) owners at the centers of cells of the padded square."""
        side = self.grid * CELLS
        at = (np.arange(side) + 0.5) * max(owners.shape) / side
        rows, columns = (at[at < limit].astype(int) for limit in owners.shape)
        sampled = torch.zeros(side, side, dtype=torch.uint8)
        sampled[: len(rows), : len(columns)] = torch.from_numpy(owners[np.ix_(rows, columns)])
        return sampled

    def batch(self, index: Tensor, *, mirror: Tensor) -> tuple[Tensor, PatchTargets]:
        """Pixels (B, 3, R, R) and targets of the scenes ``index`` (B,).

        Args:
            mirror: (B,) bool, which scenes to turn left to right.
        """
        valid_hw = self.valid_hw[index]
        width = valid_hw[:, 1]
        pixels = _mirror(self.pixels[index].float(), width, mirror)
        side = self.grid * CELLS
        # Cells count as part of the picture by their centers, as in ``_sample_owners``.
        columns = (width * side / self.image_size).round().long()
        owners = _mirror(self.owners[index], columns, mirror)
        centers = self.centers[index]
        flipped = torch.stack([(width / self.image_size)[:, None], torch.ones(len(index), 1)], dim=-1)
        x = centers[..., 0::2]
        centers[..., 0::2] = torch.where(mirror[:, None, None], flipped - x, x)
        valid = patch_valid_mask(valid_hw, size=self.image_size, grid=self.grid).flatten(1)
        return pixels, _patch_targets(owners, self.traits[index], centers, valid, grid=self.grid)


def _mirror(image: Tensor, width: Tensor, mirror: Tensor) -> Tensor:
    """Turn the first ``width`` (B,) columns of some images (B, ..., W) left to right; padding stays put."""
    columns = torch.arange(image.shape[-1])
    source = torch.where(mirror[:, None] & (columns < width[:, None]), width[:, None] - 1 - columns, columns)
    source = source.view(len(image), *[1] * (image.ndim - 2), -1).expand_as(image)
    return image.gather(-1, source)


def _patch_targets(
    owners: Tensor,
    traits: Tensor,
    centers: Tensor,
    valid: Tensor,
    *,
    grid: int,
) -> PatchTargets:
    """Owners of cells (B, G * U, G * U), traits and centers of owners (B, M, 4) -> targets of patches."""
    cells = owners.long().unflatten(2, (grid, CELLS)).unflatten(1, (grid, CELLS))  # (B, G, U, G, U)
    cells = cells.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, T, U * U)
    owner = F.one_hot(cells, OWNERS).sum(2).argmax(-1, keepdim=True)  # (B, T, 1)
    return PatchTargets(
        valid=valid,
        traits=traits.gather(1, owner.expand(-1, -1, traits.shape[-1])),
        centers=centers.gather(1, owner.expand(-1, -1, centers.shape[-1])),
        foreground=(cells > 0).float(),
        own=(cells == owner).float(),
    )
