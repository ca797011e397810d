"""How a user may name a photo, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import InputError
from tests.support.tiny_data import draw_photo
from utils.inference.photos import check_photo, photo_path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("beach at noon.jpg", "cat.png", "it's.jpg"):
        draw_photo(tmp_path / name)
    (tmp_path / "notes.txt").write_text("cat")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("cat.png", "cat.png"),
        (" cat.png ", "cat.png"),
        ("~/cat.png", "cat.png"),
        ("beach at noon.jpg", "beach at noon.jpg"),
        ("'beach at noon.jpg'", "beach at noon.jpg"),
        ("beach\\ at\\ noon.jpg ", "beach at noon.jpg"),
        ("it's.jpg", "it's.jpg"),
        ("file://{folder}/beach%20at%20noon.jpg", "beach at noon.jpg"),
    ],
)
def test_a_photo_is_found_as_it_is_typed_pasted_or_dropped(folder, typed, name):
    assert photo_path(typed.format(folder=folder)).resolve() == folder / name


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "no image was named"),
        ("  ", "no image was named"),
        ("https://example.org/a b.jpg", r"download it first \(curl -LO 'https://example.org/a b.jpg'\)"),
        (".", r"image \. is a folder; give a picture in it, for example beach at noon\.jpg$"),
        ("empty", "image empty is a folder; there is no picture in it"),
        ("cat.jpg", r"image cat.jpg does not exist; did you mean cat\.png"),
        ("~/cta.png", r"does not exist; did you mean .*/cat\.png\?"),
        ("zebra", "image zebra does not exist; check the path$"),
        ("/dev/null", "image /dev/null is not a file"),
        ("no/such/folder.jpg", "image no/such/folder.jpg does not exist; check the path$"),
        ("x" * 5000, "does not exist"),
        ("'cat.png", r"does not exist; did you mean cat\.png\?"),
    ],
)
def test_what_is_no_photo_is_answered_with_what_to_type(folder, typed, says):
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match=says):
        photo_path(typed)


def test_a_file_that_is_no_picture_is_found_by_its_header(folder):
    assert check_photo("cat.png") == Path("cat.png")
    with pytest.raises(InputError, match=r"image notes\.txt cannot be decoded"):
        check_photo("notes.txt")
