"""What strangers upload: a photo that is read, or one line that says why not and names no path of the server."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from model.errors import InputError
from model.photo_file import read_image
from utils.demo.flags import DemoConfig
from utils.demo.uploads import read_upload, shown_name

NAMES = (
    "photo.jpg", "../../etc/passwd.jpg", "..\\..\\boot.ini", "a\nb\r\0.png", "\u202egpj.exe", "x" * 5000 + ".jpg",
    "фото.jpeg", "<img src=x onerror=alert(1)>.png", "", ".", "con.png", "\ud800.jpg", None, 7, ["a"], "//",
)  # fmt: skip


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\x09IDAT"
    )


def damaged(dice: random.Random, jpeg: bytes) -> bytes:
    """Content that is no photo within the limits."""
    side = dice.choice([3001, 20_000, 65_535, 2**31 - 1])
    return dice.choice(
        [
            lambda: b"",
            lambda: dice.randbytes(dice.randrange(1, 2000)),
            lambda: jpeg[: dice.randrange(1, 120)],
            lambda: jpeg[:20] + dice.randbytes(400),
            lambda: png_that_claims(side, dice.choice([1, 3000, side])),
            lambda: png_that_claims(200, 100) + dice.randbytes(50),
            lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            lambda: b"%PDF-1.7\n" + dice.randbytes(100),
            lambda: b"just some words\n" * dice.randrange(1, 9),
            lambda: b"\0\0\0\x18ftypmp42" + dice.randbytes(100),
            lambda: b"\0\0\0\x18ftypheic" + dice.randbytes(100),
            lambda: b"PK\x03\x04" + dice.randbytes(100),
            lambda: b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + dice.randbytes(60),
            lambda: b"RIFF" + dice.randbytes(4) + b"WEBPVP8 " + dice.randbytes(60),
        ]
    )()


def holds_one_line(error: InputError, folder: Path) -> bool:
    text = str(error)
    return text == text.strip() and text.isprintable() and len(text) < 300 and str(folder.parent) not in text


@pytest.mark.parametrize("seed", range(50))
def test_a_bad_upload_gives_one_line_and_the_next_one_is_read(uploads, config, jpeg, pixels, seed):
    dice = random.Random(seed)
    (uploads / "bad").write_bytes(damaged(dice, jpeg))
    name = dice.choice(NAMES)
    with pytest.raises(InputError) as refused:
        read_upload(str(uploads / "bad"), name, folder=uploads, config=config)
    assert holds_one_line(refused.value, uploads)
    (uploads / "good").write_bytes(jpeg)
    assert read_upload(str(uploads / "good"), name, folder=uploads, config=config).pixels.shape == pixels.shape


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<svg/>", "is an SVG drawing; export it as PNG"),
        (b"%PDF-1.4", "is a PDF document"),
        (b"\0\0\0\x18ftypheic\0\0", "is an HEIC photo; export it as JPEG"),
        (b"\0\0\0\x18ftypisom\0\0", "is a video"),
        (b"hello", "is not a photo, or it is damaged"),
        (b"", "is empty"),
        (png_that_claims(60_000, 60_000), "claims to be larger than any photo"),
        (png_that_claims(3001, 10), "is 3001 x 10 pixels, and this page takes 3,000 per side and 4 million together"),
    ],
    ids=["SVG", "PDF", "HEIC", "video", "text", "empty", "bomb", "large"],
)
def test_the_line_says_what_was_found(uploads, config, content, words):
    (uploads / "bad").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_upload(str(uploads / "bad"), "holiday.jpg", folder=uploads, config=config)
    assert str(refused.value).startswith("holiday.jpg ")
    assert words in str(refused.value)


def test_files_over_the_limit_are_not_opened(uploads, parrot, jpeg):
    config = DemoConfig(version=str(parrot), max_upload=1)
    (uploads / "big").write_bytes(jpeg + bytes(2**20))
    with pytest.raises(InputError, match=r"big\.jpg has 1\.0 MB, and this page takes 1 MB at most"):
        read_upload(str(uploads / "big"), "big.jpg", folder=uploads, config=config)


def test_only_files_of_the_upload_folder_are_read(uploads, config, jpeg, tmp_path):
    """Neither those beside it, nor what a link in it leads to."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg)
    (uploads / "link.jpg").symlink_to(secret)
    for path in (
        secret, uploads / "link.jpg", uploads / "../secret.jpg", uploads, uploads / "none", f"{secret}\0", "", None, 3,
        "http://127.0.0.1/x.jpg", ["a"], "\ud800", "x" * 10_000,
    ):  # fmt: skip
        given = str(path) if isinstance(path, Path) else path
        with pytest.raises(InputError, match="is not here any more"):
            read_upload(given, "secret.jpg", folder=uploads, config=config)


def test_a_rotated_photo_is_upright_as_in_chat(uploads, config):
    photo = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(uploads / "a.jpg", exif=exif)
    upload = read_upload(str(uploads / "a.jpg"), "a.jpg", folder=uploads, config=config)
    assert upload.pixels.shape == (60, 40, 3)
    assert (upload.pixels == read_image(uploads / "a.jpg")).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_said(uploads, config, kind):
    red, blue = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))
    buffer = io.BytesIO()
    red.save(buffer, kind, save_all=True, append_images=[blue], duration=100, lossless=True)
    (uploads / "a").write_bytes(buffer.getvalue())
    upload = read_upload(str(uploads / "a"), "dance.gif", folder=uploads, config=config)
    assert (upload.pixels == (255, 0, 0)).all()
    assert upload.note == "dance.gif is animated; its first frame is used"


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tiff"])
def test_the_content_says_the_format_and_not_the_name(uploads, config, pixels, suffix):
    (uploads / "a").write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    assert read_upload(str(uploads / "a"), "a.jpg", folder=uploads, config=config).pixels.shape == pixels.shape


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_in_one_short_line_without_folders(name):
    shown = shown_name(name)
    assert shown
    assert shown.isprintable()
    assert len(shown) <= 80
    assert not set(shown) & set("/\\\0\n")


def test_a_long_name_keeps_its_suffix():
    assert shown_name("x" * 200 + ".jpeg").endswith("….jpeg")
    assert shown_name("C:\\photos\\cat.jpg") == shown_name("/tmp/cat.jpg") == "cat.jpg"
