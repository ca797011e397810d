"""Drawing: what is painted where, that nothing is cut or changed in place, and files that are whole or not there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.drawing import PALETTE, fit, overlay, write_image
from model.errors import InputError
from model.image import read_image


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def rectangle(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns] = True
    return mask


def test_palette_colors_are_distinct():
    colors = np.array(PALETTE)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1000 * np.eye(len(colors))
    assert len(PALETTE) >= 12
    assert distance.min() > 50


def test_overlay_tints_the_mask_and_nothing_else():
    image, mask = gray(120, 160), rectangle(120, 160, slice(20, 100), slice(20, 140))
    before = image.copy()
    picture = overlay(image, mask[None], colors=[(255, 0, 0)], alpha=0.5)
    assert np.array_equal(image, before)
    assert picture[30, 30].tolist() == [192, 64, 64]
    assert picture[20, 60, 0] > 230, "the outline is stronger than the tint"
    assert np.array_equal(picture[:15], before[:15])


def test_overlay_shows_a_small_mask_on_top_of_a_large_one():
    large = rectangle(100, 100, slice(0, 100), slice(0, 100))
    small = rectangle(100, 100, slice(10, 40), slice(10, 40))
    for order in ([large, small], [small, large]):
        colors = [(255, 0, 0) if mask is large else (0, 0, 255) for mask in order]
        picture = overlay(gray(100, 100), np.stack(order), colors=colors)
        assert picture[14, 14, 2] > picture[14, 14, 0]


def test_overlay_numbers_differ():
    mask = rectangle(200, 200, slice(50, 150), slice(50, 150))
    red = [(255, 0, 0)]
    first = overlay(gray(200, 200), mask[None], colors=red)
    # The second of two masks is number 1; the first, empty, is not drawn.
    second = overlay(gray(200, 200), np.stack([np.zeros_like(mask), mask]), colors=red)
    assert not np.array_equal(first, second)
    assert np.array_equal(first[:80], second[:80])


def test_overlay_takes_more_masks_than_colors_and_none():
    masks = np.stack([rectangle(90, 90, slice(2 * i, 2 * i + 2), slice(0, 90)) for i in range(40)])
    assert overlay(gray(90, 90), masks).shape == (90, 90, 3)
    assert np.array_equal(overlay(gray(9, 9), np.zeros((0, 9, 9), dtype=bool)), gray(9, 9))


@pytest.mark.parametrize("hw", [(30, 60), (60, 30), (400, 300)])
def test_fit_keeps_image_and_masks_together(hw):
    image, mask = np.zeros((*hw, 3), dtype=np.uint8), np.zeros(hw, dtype=bool)
    mask[: hw[0] // 2], image[: hw[0] // 2] = True, 255
    small, masks = fit(image, mask[None], side=120)
    assert max(small.shape[:2]) == 120
    assert masks.shape == (1, *small.shape[:2])
    assert np.mean((small[..., 0] > 127) == masks[0]) > 0.98


def test_overlay_refuses_masks_of_another_size():
    with pytest.raises(ValueError, match=r"\(9, 8\)"):
        overlay(gray(9, 8), np.zeros((1, 8, 9), dtype=bool))


def test_write_image_keeps_colors(tmp_path):
    image = np.zeros((4, 5, 3), dtype=np.uint8)
    image[..., 0] = 200
    path = tmp_path / "new folder" / "é.png"
    write_image(path, image)
    assert np.array_equal(read_image(path), image)
    write_image(tmp_path / "mask.png", image[..., 0])
    assert cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED).shape == (4, 5)
    with pytest.raises(InputError, match=r"\.txt"):
        write_image(tmp_path / "mask.txt", image)


def test_a_picture_is_written_whole_or_refused(tmp_path):
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    path = tmp_path / "Übung/ein Bild.jpg"
    write_image(path, image)
    assert [written.name for written in path.parent.iterdir()] == ["ein Bild.jpg"]
    blocked = tmp_path / "file/picture.png"
    blocked.parent.write_text("no folder")
    taken = tmp_path / "taken.png"
    taken.mkdir()
    for place in (blocked, taken):
        with pytest.raises(InputError, match=rf"{place} (cannot be written|is a folder)"):
            write_image(place, image)
    assert not list(tmp_path.glob(".*")), "nothing is left of what failed"


def test_jpeg_quality_decides_the_size(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    write_image(tmp_path / "low.jpg", image, jpeg_quality=20)
    write_image(tmp_path / "high.jpg", image)
    assert (tmp_path / "low.jpg").stat().st_size < (tmp_path / "high.jpg").stat().st_size
