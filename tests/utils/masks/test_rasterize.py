"""Segmentations as annotation files store them, right and wrong."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from model.errors import InputError
from tests.support.tiny_data import box
from utils.masks.rasterize import decode_segmentation

HW = (20, 30)
MASK = np.zeros(HW, dtype=bool)
MASK[3:9, 5:21] = True
MASK[4, 7:9] = False
FLAT = MASK.ravel(order="F")
EDGES = np.flatnonzero(FLAT[1:] != FLAT[:-1]) + 1
RUNS = np.diff([0, *EDGES, FLAT.size]).tolist()
COMPRESSED = coco_mask.encode(np.asfortranarray(MASK.astype(np.uint8)))["counts"]
SIZE = list(HW)


def decode(segmentation):
    return decode_segmentation(segmentation, HW, where="tiny ann_id 7")


@pytest.mark.parametrize(
    "code",
    [
        {"size": SIZE, "counts": COMPRESSED},
        {"size": SIZE, "counts": COMPRESSED.decode()},
        {"size": SIZE, "counts": RUNS},
        [{"size": SIZE, "counts": COMPRESSED.decode()}],
    ],
    ids=["bytes", "str", "uncompressed", "list of one"],
)
def test_run_lengths(code):
    mask = decode(code)
    assert mask.dtype == bool
    assert np.array_equal(mask, MASK)


def test_random_masks_survive_compression():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = rng.random(HW) < density
        code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert np.array_equal(decode({"size": SIZE, "counts": code["counts"]}), mask)


def test_polygons_are_united_not_summed():
    """The release adds overlapping polygons up to 2."""
    mask = decode(box(2, 3, 10, 5) + box(6, 3, 10, 5))
    assert mask.sum() == decode(box(2, 3, 14, 5)).sum()
    assert mask.dtype == bool


def test_a_bow_tie_has_area():
    assert decode([[2, 2, 12, 12, 12, 2, 2, 12]]).any()


def test_an_empty_list_is_an_empty_mask():
    assert not decode([]).any()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 9, 9]], "4 numbers"),
        ([[1, 1, 9, 9, 4]], "5 numbers"),
        ([[1, 1, 9, 9, float("nan"), 4]], "coordinate nan"),
        ([[1, 1, 5, 5, 9, 9]], "no area"),
        ([[3, 3, 3, 3, 3, 3]], "no area"),
        ([*box(1, 1, 5, 5), [2, 2, 4, 4]], "4 numbers"),
        ([1, 1, 9, 9, 1, 9], "COCO's format"),
        ([[1, 1, 9, 9, "1", 9]], "coordinate '1'; expected numbers"),
        ([[1, 1, 9, 9, True, 9]], "coordinate True; expected numbers"),
        ([[0, 0, 1e10, 0, 1e10, 1e10]], "coordinate 10000000000.0, and the photo is 20 x 30"),
        ([[0, 0, -301, 0, 1, 1]], "coordinate -301, and the photo is 20 x 30"),
        ([[0, 0, 10**400, 0, 1, 1]], "coordinate 1000"),
        ([[0, 0, 9, 9] * 30_000], "120000 numbers; expected 100000 at most"),
        ([{}], "COCO's format"),
        ("mask.png", "COCO's format"),
        (None, "COCO's format"),
        ({"counts": RUNS}, "COCO's format"),
        ({"size": [30, 20], "counts": RUNS}, "size"),
        ([{"size": [20, 31], "counts": COMPRESSED}], "size"),
        ({"size": SIZE, "counts": [10]}, "cover 10 pixels"),
        ({"size": SIZE, "counts": [700]}, "cover 700 pixels"),
        ({"size": SIZE, "counts": [-5, 605]}, "run lengths"),
        ({"size": SIZE, "counts": ["x"]}, "cannot be read"),
        ({"size": SIZE, "counts": COMPRESSED[:-3]}, "run lengths"),
        ({"size": SIZE, "counts": "é"}, "cannot be read"),
        ({"size": SIZE, "counts": b"P"}, "cannot be read"),
        ({"size": SIZE, "counts": "o" * 100_000}, "cannot be read"),
        ({"size": SIZE, "counts": [600.0]}, "cannot be read"),
        ({"size": SIZE, "counts": [True] * 600}, "cannot be read"),
        ({"size": SIZE, "counts": [10**400, -(10**400), 600]}, "cannot be read"),
        ({"size": SIZE, "counts": 600}, "cannot be read"),
        ({"size": 600, "counts": RUNS}, "COCO's format"),
        ({"size": [20.0, 30.0], "counts": RUNS}, "COCO's format"),
    ],
)
def test_damaged_segmentations_are_refused_by_name(segmentation, message):
    """pycocotools answers several of these with random memory."""
    with pytest.raises(InputError, match=message) as caught:
        decode(segmentation)
    assert str(caught.value).startswith("tiny ann_id 7")


def test_corners_within_ten_times_the_photo_are_drawn():
    """Some annotations reach out of their photo."""
    assert decode([[-300, -300, 300, -300, 300, 300, -300, 300]]).all()


def test_an_outline_takes_no_more_memory_than_a_large_photo():
    zigzag = [number for place in range(20_000) for number in (0, 600_000 * (place % 2))]
    with pytest.raises(InputError, match="pixels around"):
        decode_segmentation([zigzag], (60_000, 1_000), where="tiny")


@pytest.mark.parametrize(
    "hw",
    [(0, 30), (-1, 30), (True, 30), ("20", 30), (20.0, 30), (None, 30), (2**31, 30), (10**30, 1), (60_000, 60_000)],
)
def test_a_size_that_no_photo_has(hw):
    for segmentation in (box(0, 0, 5, 5), [], {"size": list(hw), "counts": [0]}):
        with pytest.raises(InputError, match="recorded as height x width"):
            decode_segmentation(segmentation, hw, where="tiny")
