"""Files of an answer: of the photo's size, without what is hidden, and safe whatever strangers type."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from model.drawing import PALETTE, overlay
from model.errors import InputError
from model.replies import Target
from utils.demo.downloads import make_download, safe_stem
from utils.demo.session import Photo, Session, ShownTarget, Turn
from utils.demo.uploads import Upload

BOXES = ((5, 5, 40, 30), (50, 40, 30, 40), (20, 20, 40, 40))  # x, y, width, height
PHRASES = ("red star", "", "red star")


@pytest.fixture
def session(pixels) -> Session:
    """Three targets; the probability in each is 0.9 in its left half, and 0.6 in its right one."""
    targets = []
    for phrase, (x, y, width, height) in zip(PHRASES, BOXES, strict=True):
        probabilities = torch.full(pixels.shape[:2], 0.1)
        probabilities[y : y + height, x : x + width // 2] = 0.9
        probabilities[y : y + height, x + width // 2 : x + width] = 0.6
        target = Target(phrase, (0, 1), probabilities > 0.5, 0.75, probabilities.logit())
        targets.append(ShownTarget.of(target, threshold=0.5))
    photo = Photo.of(Upload("../my <photo>.jpg", pixels))
    return Session(photo, turns=[Turn("Where?", "ask", "[0] [1] [2]", targets, "done")])


def asked(what: str, **changes) -> dict:
    return {
        "what": what, "turn": 0, "hidden": [], "names": {}, "threshold": 0.5, "opacity": 0.4, "outline": True,
    } | changes  # fmt: skip


def content(file: dict[str, str]) -> bytes:
    return base64.b64decode(file["url"].partition(";base64,")[2])


def picture(file: dict[str, str]) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(content(file), np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def masks(session: Session, threshold: float = 0.5) -> np.ndarray:
    return np.stack([target.mask(threshold) for target in session.turns[0].targets])


def test_the_overlay_is_that_of_chat_at_the_size_of_the_photo(session, pixels):
    file = make_download(session, asked("overlay"))
    assert file["name"] == "my_photo_overlay.png"
    assert file["url"].startswith("data:image/png;base64,")
    assert (picture(file) == overlay(pixels, masks(session), alpha=0.4)).all()


def test_the_overlay_leaves_out_what_is_hidden_and_keeps_the_colors_of_the_rest(session, pixels):
    drawn = picture(make_download(session, asked("overlay", hidden=[0, 2], opacity=1.0, outline=False)))
    left, top, *_ = BOXES[1]
    assert tuple(drawn[top + 2, left + 2]) == PALETTE[1]
    of_others = masks(session)[[0, 2]].any(axis=0)[:20]  # above everything that is drawn of this one
    assert of_others.any()
    assert (drawn[:20] == pixels[:20]).all()


def test_the_cutout_holds_no_pixel_of_what_is_not_in_it(session, pixels):
    cut = picture(make_download(session, asked("cutout", hidden=[1], threshold=0.7)))
    inside = masks(session, 0.7)[[0, 2]].any(axis=0)
    assert 0 < inside.sum() < masks(session)[[0, 2]].any(axis=0).sum()
    assert (cut[..., 3] == np.where(inside, 255, 0)).all()
    assert (cut[inside, :3] == pixels[inside]).all()
    assert not cut[~inside].any()


def test_masks_come_as_a_zip_of_safe_names(session):
    names = {"0": "../../evil", "1": "ein Stern: <b>", "2": "."}
    file = make_download(session, asked("masks", names=names, threshold=0.3))
    archive = zipfile.ZipFile(io.BytesIO(content(file)))
    assert archive.namelist() == ["0_evil.png", "1_ein_Stern_b.png", "2_target.png"]
    for name, mask in zip(archive.namelist(), masks(session, 0.3), strict=True):
        stored = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_UNCHANGED)
        assert (stored == np.where(mask, 255, 0)).all()


def test_pycocotools_reads_the_annotations(session, tmp_path, pixels):
    file = make_download(session, asked("coco", names={"1": "pond"}))
    (tmp_path / "coco.json").write_bytes(content(file))
    coco = COCO(tmp_path / "coco.json")
    (photo,) = coco.loadImgs(coco.getImgIds())
    assert (photo["height"], photo["width"]) == pixels.shape[:2]
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["red star", "pond"]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [annotation["category_id"] for annotation in annotations] == [1, 2, 1]
    for annotation, box, mask in zip(annotations, BOXES, masks(session), strict=True):
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["area"] == mask.sum()
        assert tuple(annotation["bbox"]) == box
        assert annotation["score"] == 0.75
    assert "target 1" in json.loads(content(make_download(session, asked("coco"))))["categories"][1]["name"]


@pytest.mark.parametrize(
    "changes",
    [
        {"what": "shell"}, {"turn": 1}, {"turn": -1}, {"turn": "0"}, {"turn": 2**70}, {"hidden": ["0"]},
        {"hidden": [0, 1, 2]}, {"names": {"0": 5}}, {"names": {"0": "\ud800"}}, {"threshold": float("nan")},
        {"threshold": 2}, {"opacity": None}, {"outline": 1}, {"hidden": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_browser_must_not_send_is_refused_in_one_line(session, changes):
    with pytest.raises(InputError) as refused:
        make_download(session, asked("masks") | changes)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("sent", [None, [], {}, "masks"], ids=str)
def test_other_things_than_a_download_are_refused(session, sent):
    with pytest.raises(InputError):
        make_download(session, sent)


def test_no_two_downloads_have_one_id(session):
    assert make_download(session, asked("coco"))["id"] != make_download(session, asked("coco"))["id"]


def test_names_of_files_are_safe_everywhere():
    assert safe_stem('a/b\\c:d*?"<>|\n', "x") == "a_b_c_d"
    assert safe_stem("...", "x") == safe_stem("", "x") == "x"
    assert safe_stem("Ärger 3", "x") == "Ärger_3"
    assert len(safe_stem("n" * 500, "x")) == 40
