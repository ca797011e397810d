"""Pictures: the release's own, and contact sheets on which nothing is cut."""

import numpy as np
import pytest

from utils.pictures import contact_sheet, released_overlay


def gray(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def test_released_overlay_is_half_red():
    image = np.array([[[10, 201, 31], [0, 0, 0]]], dtype=np.uint8)
    picture = released_overlay(image, np.array([[True, False]]))
    assert picture.tolist() == [[[132, 100, 15], [0, 0, 0]]]  # 132.5, 100.5, 15.5 cut


def test_contact_sheet_keeps_every_panel_whole():
    panels = [np.full((40 + 10 * index, 200, 3), 20 * index, dtype=np.uint8) for index in range(5)]
    captions = ["short", "a caption that is far too long for one line " * 3, "", "“café” … naïve", "two\nlines"]
    sheet = contact_sheet(panels, columns=2, captions=captions)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 2 * 200 + 3 * 16
    assert all((sheet == panel[0, 0]).all(axis=-1).sum() >= panel[..., 0].size for panel in panels)


def test_contact_sheet_captions_stay_inside_their_column():
    panels = [gray(30, 240), gray(30, 240)]
    long = "Which of the objects would you use to keep the rain away while walking to the station?"
    sheet = contact_sheet(panels, columns=2, captions=[long, long])
    middle = sheet[:, 16 + 240 + 8 : 16 + 240 + 16]
    assert (middle == 255).all()


def test_contact_sheet_wants_a_caption_per_panel():
    with pytest.raises(ValueError, match="1, 2"):
        contact_sheet([gray(3, 3)] * 2, columns=1, captions=["one"])
