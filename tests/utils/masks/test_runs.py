"""Areas and overlaps from run lengths alone, held to pycocotools and to drawn masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from model.errors import InputError
from model.rle import encode_rle
from tests.support.search import seeded
from utils.masks.runs import cut_into_segments, read_runs

stacks = st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 7)).flatmap(lambda shape: arrays(bool, shape))


def runs_of(mask: np.ndarray) -> list[int]:
    """By walking over the pixels."""
    runs, inside = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != inside:
            runs.append(0)
            inside = pixel
        runs[-1] += 1
    return runs


@seeded
@given(stacks)
def test_segments_hold_every_pixel_of_every_mask(masks):
    segments = cut_into_segments([encode_rle(mask) for mask in masks], masks.shape[1:], where="test")
    drawn = np.repeat(segments.inside, segments.lengths, axis=1).reshape(len(masks), *masks.shape[:0:-1])
    assert np.array_equal(drawn.transpose(0, 2, 1), masks)


@seeded
@given(stacks)
def test_runs_are_those_of_the_pixels(masks):
    for mask in masks:
        assert read_runs(encode_rle(mask), mask.shape, where="test").tolist() == runs_of(mask)
        listed = {"size": list(mask.shape), "counts": runs_of(mask)}
        assert read_runs(listed, mask.shape, where="test").tolist() == runs_of(mask)


def test_long_runs_and_fine_ones():
    """Runs of several characters, and differences with either sign, as pycocotools reads them."""
    rng = np.random.default_rng(0)
    for density in (0.001, 0.1, 0.5, 0.999):
        mask = rng.random((480, 640)) < density
        code = encode_rle(mask)
        runs = read_runs(code, mask.shape, where="test")
        assert runs.tolist() == runs_of(mask)
        assert runs[1::2].sum() == coco_mask.area(code)


def test_damage_names_the_mask_and_the_remedy():
    code = encode_rle(np.eye(6, dtype=bool))
    cut = code | {"counts": code["counts"][:-2]}
    with pytest.raises(InputError, match=r"^question 3: mask 1: its run lengths .*; ask again$"):
        cut_into_segments([code, cut], (6, 6), where="question 3", remedy="ask again")
    with pytest.raises(InputError, match=r"mask 0: the mask's size is \[6, 6\], the photo's \[6, 7\]"):
        cut_into_segments([code], (6, 7), where="question 3")
    with pytest.raises(InputError, match="question 3"):
        cut_into_segments([], (0, 7), where="question 3")


@pytest.mark.parametrize("counts", ["", "o", "oooooooooooooo0", "\x00", "~~", "é", [36.0], [True] * 36, [-1, 37], None])
def test_text_that_is_no_run_length_is_refused(counts):
    with pytest.raises(InputError, match="run lengths"):
        read_runs({"size": [6, 6], "counts": counts}, (6, 6), where="test")
