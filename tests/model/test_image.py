"""Photo -> input and masks -> photo are inverse to each other, for any shape of photo."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import InputError
from model.image import CLIP_MEAN, CLIP_STD, ImagePreprocessor, PhotoResize, patch_valid_mask, read_image, resize_logits

SIDES = st.integers(1, 90)


def preprocessor(size: int, *, pad: bool) -> ImagePreprocessor:
    return ImagePreprocessor(size, pad, CLIP_MEAN, CLIP_STD)


@given(SIDES, SIDES, st.sampled_from([14, 56, 84]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_photo_gives_a_whole_input(height, width, size, pad):
    photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = preprocessor(size, pad=pad)(photo)
    assert found.pixel_values.shape == (3, size, size)
    assert found.pixel_values.isfinite().all()
    assert found.photo_hw == (height, width)
    top, left, rows, columns = found.region
    assert min(top, left) >= 0
    assert top + rows <= height
    assert left + columns <= width
    if pad:
        assert found.region == (0, 0, height, width)
        assert max(found.valid_hw) == size
        assert min(found.valid_hw) >= 1
        shown, hidden = found.pixel_values.clone(), found.pixel_values.clone()
        shown[:, found.valid_hw[0] :], shown[:, :, found.valid_hw[1] :] = 0, 0
        assert torch.equal(shown, hidden), "padding is zero after normalization"
    else:
        assert found.valid_hw == (size, size)
        assert rows == columns == min(height, width)


@given(SIDES, SIDES, st.booleans(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_cropping_masks_and_placing_them_back_are_inverse(height, width, pad, count):
    rng = np.random.default_rng(height * 100 + width)
    prepared = preprocessor(56, pad=pad)(np.zeros((height, width, 3), dtype=np.uint8))
    masks = rng.random((count, height, width)) < 0.5
    cropped = torch.from_numpy(prepared.crop_masks(masks).copy())
    placed = prepared.put_back(cropped, outside=False)
    assert placed.shape == (count, height, width)
    top, left, rows, columns = prepared.region
    inside = np.zeros((height, width), dtype=bool)
    inside[top : top + rows, left : left + columns] = True
    assert np.array_equal(placed.numpy(), masks & inside)
    assert np.array_equal(prepared.crop_masks(placed.numpy()), cropped.numpy())


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("hw", [(300, 200), (200, 300), (240, 240), (61, 400)])
def test_a_mask_survives_the_way_to_the_input_and_back(hw, pad):
    """An offset of the crop or of the padding would move the box."""
    height, width = hw
    size = 224
    mask = np.zeros(hw, dtype=np.uint8)
    mask[height // 3 : height * 2 // 3, width // 2 - 12 : width // 2 + 18] = 255
    prepared = ImagePreprocessor(size, pad, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(np.stack([mask] * 3, axis=-1))
    _, _, rows, columns = prepared.region
    logits = prepared.pixel_values[:1]  # -1 where black, 1 where white
    found = prepared.put_back(
        resize_logits(logits, size=size, valid_hw=prepared.valid_hw, out_hw=(rows, columns)), outside=float("-inf")
    )
    found, true = (found[0] > 0).numpy(), mask > 0
    assert (found & true).sum() / (found | true).sum() > 0.93


def test_normalization_is_per_channel():
    photo = np.full((56, 56, 3), (10, 20, 30), dtype=np.uint8)
    pixels = ImagePreprocessor(56, True, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))(photo).pixel_values
    expected = [(10 / 255 - 0.1) / 0.5, (20 / 255 - 0.2) / 0.25, 30 / 255 - 0.3]
    assert torch.allclose(pixels.mean((1, 2)), torch.tensor(expected), atol=1e-6)


@given(st.integers(1, 56), st.integers(1, 56), st.sampled_from([1, 2, 4, 7]))
@settings(max_examples=100, deadline=None)
def test_a_cell_is_valid_if_it_shows_a_pixel_of_the_photo(rows, columns, grid):
    size = 56
    shown = np.zeros((size, size), dtype=bool)
    shown[:rows, :columns] = True
    cell = size // grid
    expected = shown.reshape(grid, cell, grid, cell).any(axis=(1, 3))
    found = patch_valid_mask(torch.tensor([[rows, columns]]), size=size, grid=grid)[0]
    assert np.array_equal(found.numpy(), expected)


def test_no_masks_stay_no_masks():
    logits = resize_logits(torch.zeros(0, 8, 8), size=56, valid_hw=(56, 40), out_hw=(31, 17))
    assert logits.shape == (0, 31, 17)


def test_constant_logits_stay_constant():
    logits = resize_logits(torch.full((2, 8, 8), 3.0), size=56, valid_hw=(56, 40), out_hw=(31, 17))
    assert torch.allclose(logits, torch.full((2, 31, 17), 3.0))


def test_pixels_that_no_patch_covers_go_on_from_the_border():
    """512 px hold 36 patches of 14, which end at 504: masks must not be stretched over the rest."""
    logits = torch.randn(1, 8, 8)
    covered = resize_logits(logits, size=56, valid_hw=(56, 40), out_hw=(56, 40))
    whole = resize_logits(logits, size=56, valid_hw=(60, 40), out_hw=(60, 40))
    assert torch.allclose(whole[:, :56], covered)
    assert torch.allclose(whole[:, 56:], covered[:, -1:].expand(-1, 4, -1))


@given(
    st.sampled_from([1, 2, 8, 16, 36]), st.sampled_from([14, 56, 252]), st.data(), st.integers(1, 300),
    st.integers(1, 300), st.integers(1, 40),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_rows_of_a_photo_are_those_of_the_whole_and_so_is_the_gradient(low, size, data, height, width, at_once):
    """Also for a photo smaller than the logits, and for pixels that no patch covers."""
    valid = data.draw(st.tuples(st.integers(1, size + 13), st.integers(1, size + 13)))
    generator = torch.Generator().manual_seed(low + height)
    logits = torch.randn(2, low, low, generator=generator).requires_grad_()
    expected = resize_logits(logits, size=size, valid_hw=valid, out_hw=(height, width))
    gradient = torch.randn(expected.shape, generator=generator)
    (expected_gradient,) = torch.autograd.grad(expected, logits, gradient, retain_graph=True)
    (of_sizes,) = torch.autograd.grad(expected, logits, gradient.abs())  # what rounding is a share of
    by_rows = PhotoResize(size, valid, (height, width)).of(logits)
    found = torch.zeros_like(expected_gradient)
    for start in range(0, height, at_once):
        rows = slice(start, min(start + at_once, height))
        assert torch.allclose(by_rows.resized(logits.detach(), rows), expected[:, rows], atol=2e-5)
        by_rows.add_gradient(found, gradient[:, rows], rows)
    assert bool(((found - expected_gradient).abs() <= 1e-5 * of_sizes + 1e-6).all())


def test_images_are_read_as_rgb(tmp_path):
    red = np.zeros((4, 6, 3), dtype=np.uint8)
    red[..., 0] = 200
    for name, image in (("rgb.png", Image.fromarray(red)), ("rgba.png", Image.fromarray(red).convert("RGBA"))):
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name), red)
    Image.fromarray(red[..., 0]).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png").tolist() == np.full((4, 6, 3), 200).tolist()


def test_images_are_turned_as_their_exif_says(tmp_path):
    photo = np.zeros((4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show it
    Image.fromarray(photo).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (6, 4, 3)


def test_names_outside_ascii(tmp_path):
    path = tmp_path / "Küche 猫.png"
    path.write_bytes(cv2.imencode(".png", np.zeros((3, 3, 3), dtype=np.uint8))[1].tobytes())
    assert read_image(path).shape == (3, 3, 3)


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_unreadable_images_are_named(tmp_path, content):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"image {path} (does not exist|cannot be decoded)"):
        read_image(path)
