"""What a reply calls its targets, and what it gives to files and other tools."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from model.errors import InputError
from model.replies import Reply, Target, bare_phrase


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("Sure, the red star is", "red star"),
        ("and a blue square", "blue square"),
        (", and the inner ring at", "inner ring"),
        ("It is red star:", "red star"),
        ("It is", ""),
        ("", ""),
        ("You can see the cat here:", "cat"),
        ("The masks of the cups are", "cups"),
        ("There are two birds. The larger one is shown by", "larger one"),
        ("the man in the red coat", "man in the red coat"),
        ("Isaac Newton", "Isaac Newton"),
        ("thematic map", "thematic map"),
        ("a cup of tea, which is on the table, is", "cup of tea, which is on the table"),
        ("the house is", "house"),
        ("the this", ""),
    ],
)
def test_a_target_is_called_by_its_name_alone(words, phrase):
    assert bare_phrase(words) == phrase


def a_reply(*masks: np.ndarray) -> Reply:
    targets = [Target(f"thing {index}", (index, index + 1), torch.from_numpy(mask), 0.75, None)
               for index, mask in enumerate(masks)]  # fmt: skip
    return Reply("the things", [1, 2], targets, "[SEG]")


@pytest.fixture
def masks() -> np.ndarray:
    """An L, nothing, and everything."""
    found = np.zeros((3, 40, 60), dtype=bool)
    found[0, 5:20, 10:14] = found[0, 16:20, 10:50] = found[2] = True
    return found


def test_coco_reads_the_targets_of_replies(masks, tmp_path):
    photos = [{"id": 7, "height": 40, "width": 60}, {"id": 8, "height": 40, "width": 60}]
    truth = {"info": {}, "images": photos, "annotations": [], "categories": [{"id": 1, "name": "target"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    found = a_reply(*masks).to_coco(7) + a_reply(masks[2]).to_coco(8, first_id=4)
    assert [entry["id"] for entry in found] == [1, 2, 3, 4]
    assert [entry["area"] for entry in found] == [*masks.sum((1, 2)), 2400]
    assert [entry["bbox"] for entry in found] == [[10, 5, 40, 15], [0, 0, 0, 0], [0, 0, 60, 40], [0, 0, 60, 40]]
    assert [entry["phrase"] for entry in found] == ["thing 0", "thing 1", "thing 2", "thing 0"]
    read = COCO(tmp_path / "truth.json").loadRes(json.loads(json.dumps(found)))
    for image_id, expected in ((7, masks), (8, masks[2:])):
        entries = read.loadAnns(read.getAnnIds(imgIds=[image_id], catIds=[1]))
        assert np.array_equal([read.annToMask(entry) for entry in entries], expected.astype(np.uint8))
        assert {entry["score"] for entry in entries} == {0.75}


def test_masks_are_saved_as_black_and_white(masks, tmp_path):
    paths = a_reply(*masks).save_masks(tmp_path / "new", "photo")
    assert [path.name for path in paths] == ["photo_mask_0.png", "photo_mask_1.png", "photo_mask_2.png"]
    for path, mask in zip(paths, masks, strict=True):
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), 255 * mask.astype(np.uint8))


def test_run_lengths_alone_need_pycocotools(masks, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    reply = a_reply(*masks)
    reply.save(tmp_path / "drawn.png", np.zeros((40, 60, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="run lengths need pycocotools, which is not installed; pip install"):
        reply.to_coco()
