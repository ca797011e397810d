"""Photos of every kind: what a size means, how colors are converted, what is refused and how it is counted."""

import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.image import read_image
from utils.data.photos import photo_hw, read_label_map
from utils.data.records import RawSample, Turn

GRAY = (np.arange(20 * 30) % 200).reshape(20, 30).astype(np.uint8)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def one_turn(path: Path, hw: tuple[int, int]) -> RawSample:
    mask = np.zeros((1, *hw), dtype=bool)
    mask[0, : max(1, hw[0] // 2)] = True
    return RawSample("sample", path, ((Turn("What?", "{seg}.", (0,)),),), mask)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("gray.png", Image.fromarray(GRAY)),
        ("gray.jpg", Image.fromarray(GRAY)),
        ("cmyk.jpg", Image.fromarray(GRAY).convert("CMYK")),
        ("sixteen.png", Image.fromarray(GRAY.astype(np.uint16) * 256)),
        ("palette.png", Image.fromarray(GRAY).convert("P")),
        ("alpha.png", Image.fromarray(GRAY).convert("RGBA")),
        ("bit.png", Image.fromarray(GRAY).convert("1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_photos_of_every_kind_become_rgb(tmp_path, encoder, name, image):
    path = save(tmp_path / name, image)
    photo = read_image(path, as_stored=True)
    assert (photo.shape, photo.dtype) == ((20, 30, 3), np.uint8)
    assert photo_hw(path) == (20, 30)
    if name != "bit.png":
        assert np.abs(photo.mean(axis=2) - GRAY).mean() < 8, "CMYK and JPEG are near, the others exact"
    assert encoder(one_turn(path, (20, 30))).pixel_values.isfinite().all()


def test_annotations_speak_of_stored_rows_and_viewers_of_shown_ones(tmp_path, encoder):
    """A photo with an EXIF rotation: datasets leave it out, chat follows it."""
    rotated = Image.fromarray(np.dstack([GRAY] * 3))
    exif = rotated.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    path = save(tmp_path / "turned.jpg", rotated, exif=exif)
    assert photo_hw(path) == (20, 30)
    assert read_image(path, as_stored=True).shape[:2] == (20, 30)
    assert read_image(path).shape[:2] == (30, 20)
    assert encoder(one_turn(path, (20, 30))).orig_hw == (20, 30)


@pytest.mark.parametrize("hw", [(1, 1), (1, 500), (500, 1), pytest.param((6000, 8000), marks=pytest.mark.slow)])
@pytest.mark.parametrize("pad", [True, False])
def test_photos_of_every_size(tmp_path, make_encoder, hw, pad):
    encoder = make_encoder(pad_train_clip_images=pad)
    path = save(tmp_path / "photo.png", Image.new("RGB", hw[::-1], (200, 10, 10)), compress_level=1)
    sample = encoder(one_turn(path, hw))
    assert tuple(sample.pixel_values.shape) == (3, 56, 56)
    assert min(sample.valid_hw) >= 1
    assert tuple(sample.masks.shape[1:]) == sample.orig_hw == (hw if pad else (min(hw),) * 2)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "image missing"),
        (b"", "image unreadable"),
        (b"no picture", "image unreadable"),
        ("cut", "image unreadable"),
    ],
)
def test_damaged_photos_are_named_and_counted(tmp_path, content, reason):
    path = tmp_path / "photo.jpg"
    if content == "cut":
        buffer = BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
        content = buffer.getvalue()[:40]
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, photo_hw):
        with pytest.raises(InputError, match=r"photo.jpg") as caught:
            read(path)
        assert caught.value.reason == reason


def claim_png(width: int, height: int) -> bytes:
    """A sound PNG of one pixel whose header claims another size."""
    buffer = BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def claim_jpeg(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("claim", [claim_png, claim_jpeg])
@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((60_000, 60_000), r"photo.png cannot be decoded \(its header claims more than 65,535"),
        ((10_000, 9_000), r"its header claims 9000 x 10000 pixels, but it has \d+ bytes"),
    ],
)
def test_a_header_that_claims_what_cannot_be_is_refused_at_once(tmp_path, claim, size, says):
    """A few bytes would make the decoder ask for 10 GB, or work for many seconds."""
    path = tmp_path / "photo.png"
    path.write_bytes(claim(*size))
    for read in (read_image, photo_hw, read_label_map):
        with pytest.raises(InputError, match=says):
            read(path)


def test_the_densest_sound_photo_is_read(tmp_path):
    Image.new("1", (5_000, 5_000)).save(tmp_path / "white.png")
    assert photo_hw(tmp_path / "white.png") == (5_000, 5_000)


def test_a_photo_of_another_size_is_refused_without_decoding_it(tmp_path, encoder):
    """Its few bytes would be decoded to 4,000 x 4,000 pixels, mostly gray."""
    (tmp_path / "photo.jpg").write_bytes(claim_jpeg(4_000, 4_000))
    started = time.process_time()
    with pytest.raises(InputError, match=r"its masks are \(20, 30\), its photo .* is \(4000, 4000\)"):
        encoder(one_turn(tmp_path / "photo.jpg", (20, 30)))
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png", "\udcff.png", "a.png/b.png", ""])
def test_names_that_no_photo_can_have(tmp_path, name):
    (tmp_path / "a.png").write_bytes(claim_png(1, 1))
    for read, reason in ((read_image, "image missing"), (photo_hw, "image missing"),
                         (read_label_map, "label map missing")):  # fmt: skip
        with pytest.raises(InputError, match="does not exist; check the path") as caught:
            read(tmp_path / name)
        assert caught.value.reason == reason


def test_half_a_photo_is_no_photo(tmp_path):
    """Some readers fill the rest with gray."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"photo.jpg cannot be decoded"):
        read_image(path)


def test_a_label_map_keeps_its_numbers(tmp_path):
    palette = Image.fromarray(GRAY).convert("P")
    palette.putpalette([255 - index % 256 for index in range(768)])
    palette.putdata(GRAY.ravel().tolist())
    assert np.array_equal(read_label_map(save(tmp_path / "p.png", palette)), GRAY)
    wide = GRAY.astype(np.uint16) * 300
    assert np.array_equal(read_label_map(save(tmp_path / "w.png", Image.fromarray(wide))), wide)


def test_an_orientation_that_exif_does_not_know_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    path = save(tmp_path / "photo.jpg", Image.fromarray(GRAY), exif=exif)
    assert photo_hw(path, upright=True) == read_image(path).shape[:2] == (20, 30)


def test_a_label_map_of_fractions_is_refused(tmp_path):
    path = save(tmp_path / "labels.tiff", Image.fromarray(np.full((4, 5), 0.5, dtype=np.float32)))
    with pytest.raises(InputError, match=r"labels\.tiff has one float32 per pixel .*expected whole numbers"):
        read_label_map(path)
