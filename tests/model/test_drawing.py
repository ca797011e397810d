"""Drawing: what is painted where, that nothing is cut or changed in place, and files that are whole or not there."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.badges import place_badges
from model.drawing import PALETTE, READABLE_SIDE, annotate, fit, ink_on, overlay, write_image
from model.errors import InputError
from model.image import read_image
from tests.support import color_sight


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


def test_the_distance_of_colors_is_that_of_its_authors():
    """The supplement of Sharma, Wu and Dalal has these pairs."""
    pairs = [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (61, -5, 29), 22.8977),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ]
    for one, other, expected in pairs:
        assert color_sight.distance(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("sight", color_sight.SIGHTS)
def test_color_blind_people_tell_the_colors_apart(sight):
    """Two colors side by side are told apart from a distance of about 2 on."""
    seen = color_sight.lab(np.array(PALETTE), sight)
    apart = color_sight.distance(seen[:, None], seen[None]) + 1000 * np.eye(len(PALETTE))
    assert apart[:8, :8].min() > 15
    assert apart.min() > 9


def test_numbers_can_be_read_on_their_colors():
    """4.5 is what WCAG 2 asks for of text (AA)."""
    assert min(color_sight.contrast(color, ink_on(color)) for color in PALETTE) > 4.5


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


def test_a_color_is_still_itself_below_the_tint():
    """Asked for the yellow circle, people look for something yellow."""
    yellow = np.full((200, 200, 3), (230, 200, 30), dtype=np.uint8)
    mask = rectangle(200, 200, slice(20, 180), slice(20, 180))
    for color in PALETTE:
        red, green, blue = overlay(yellow, mask[None], colors=[color])[40, 40].astype(int)
        assert min(red, green) > blue + 50, color


def test_masks_on_top_of_each_other_tint_once():
    masks = np.tile(rectangle(400, 400, slice(50, 350), slice(50, 350)), (17, 1, 1))
    assert np.array_equal(
        overlay(gray(400, 400), masks)[65, 65], overlay(gray(400, 400), masks[16:], colors=PALETTE[16:])[65, 65]
    )


def test_an_outline_is_seen_on_an_object_of_its_color():
    for color in PALETTE:
        image = np.full((200, 200, 3), color, dtype=np.uint8)
        picture = overlay(image, rectangle(200, 200, slice(50, 150), slice(50, 150))[None], colors=[color])
        contrast = np.abs(picture[100].astype(int) - color).max(axis=-1)
        assert contrast[45:56].max() > 80, color


@pytest.mark.parametrize("side", [600, 1800])
def test_lines_and_numbers_follow_the_size_of_the_picture(side):
    mask = rectangle(side, side, slice(side // 4, 3 * side // 4), slice(side // 8, 7 * side // 8))
    picture = overlay(gray(side, side), mask[None], colors=[(255, 0, 0)], alpha=0)
    is_red = (picture[..., 0] > 200) & (picture[..., 1] < 100)
    assert side / 500 <= is_red[side // 3, : side // 5].sum() <= side / 200
    ((x, _),) = (badge.center for badge in place_badges(mask[None], [0], radius=side // 50, num_rows=side))
    badge = is_red[side // 3 : 2 * side // 3, x - side // 10 : x + side // 10]
    assert side / 40 <= badge.any(axis=0).sum() <= side / 15


def test_specks_have_a_thin_line_and_no_rim():
    mask = rectangle(800, 800, slice(400, 700), slice(400, 700))
    mask[100:104, 100:104] = True
    picture = overlay(gray(800, 800), mask[None], colors=[(255, 0, 0)])
    changed = (picture != 128).any(axis=-1)
    assert changed[100:104, 100:104].all()
    changed[98:106, 98:106] = False
    assert not changed[:300, :300].any()


def test_many_numbers_on_one_place_are_all_legible():
    masks = np.tile(rectangle(480, 640, slice(100, 400), slice(150, 500)), (17, 1, 1))
    badges = place_badges(masks, range(17), radius=14, num_rows=480)
    assert sorted(badge.number for badge in badges) == list(range(17))
    centers = np.array([badge.center for badge in badges])
    distance = np.hypot(*(centers[:, None] - centers[None]).transpose(2, 0, 1)) + 1000 * np.eye(17)
    assert distance.min() >= 28, "none lies on another"
    assert masks[0][centers[:, 1], centers[:, 0]].all(), "all stand on what they name"


def test_a_number_stands_beside_what_it_would_hide():
    masks = np.stack(
        [rectangle(480, 640, slice(200, 208), slice(300, 308)), rectangle(480, 640, slice(0, 480), slice(0, 640))]
    )
    badges = {badge.number: badge for badge in place_badges(masks, [1, 0], radius=14, num_rows=480)}
    x, y = badges[0].center
    assert 14 < np.hypot(x - 304, y - 204) < 40
    pointed_x, pointed_y = badges[0].points_to
    assert masks[0][pointed_y - 2 : pointed_y + 3, pointed_x - 2 : pointed_x + 3].any()
    assert badges[1].points_to is None


@pytest.mark.parametrize("side", [1, 2, 9, 30, 90])
@pytest.mark.parametrize("num_masks", [1, 40])
def test_pictures_too_small_for_their_numbers_are_drawn(side, num_masks):
    for masks in (np.ones((num_masks, side, side + 1), dtype=bool), np.zeros((num_masks, side, side + 1), dtype=bool)):
        assert overlay(gray(side, side + 1), masks).shape == (side, side + 1, 3)


def test_an_empty_mask_is_named_below():
    image, masks = gray(300, 400), np.stack([rectangle(300, 400, slice(50, 150), slice(50, 150))] * 3)
    full = overlay(image, masks)
    masks[1] = False
    picture = overlay(image, masks)
    strip = picture[-16:, :60]
    assert (strip == 255).all(axis=-1).mean() > 0.5
    assert (strip < 100).all(axis=-1).any(), "there is a text"
    assert np.array_equal(picture[200:-20], full[200:-20])


def test_a_small_photo_is_enlarged_to_be_annotated():
    masks = rectangle(120, 155, slice(30, 90), slice(40, 110))[None]
    picture = annotate(gray(120, 155), masks)
    assert max(picture.shape[:2]) == READABLE_SIDE
    assert picture.shape[1] / picture.shape[0] == pytest.approx(155 / 120, rel=0.01)
    assert annotate(gray(900, 300), np.ones((1, 900, 300), dtype=bool)).shape == (900, 300, 3)
    assert np.array_equal(annotate(gray(9, 9), masks[:0, :9, :9]), gray(9, 9)), "without masks it is the photo"


def test_without_masks_the_picture_is_the_photo():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(overlay(image, np.zeros((0, 20, 30), dtype=bool), colors=[]), image)


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
