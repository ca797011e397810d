"""The files of an answer: which there are, which of an earlier one go, and that nobody else's do."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from model.drawing import write_image
from model.errors import InputError
from model.image import read_image
from model.outputs import exclusive
from model.replies import Reply, Target
from utils.inference.answer import describe, write_answer
from utils.masks.rle import decode_rles

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def a_reply(num_targets: int) -> Reply:
    masks = np.zeros((num_targets, 40, 60), dtype=bool)
    for index, mask in enumerate(masks):
        mask[5 : 12 + index, 10:40] = True
    targets = [Target(f"thing {index}", (index, index + 1), torch.from_numpy(mask), 0.75)
               for index, mask in enumerate(masks)]  # fmt: skip
    return Reply(" ".join("[SEG]" * num_targets), [1] * num_targets, targets, "[SEG]")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def names_of(stem: str, num_targets: int) -> set[str]:
    each = {
        f"{stem}_{kind}"
        for j in range(num_targets)
        for kind in (f"mask_{j}.jpg", f"masked_img_{j}.jpg", f"mask_{j}.png")
    }
    return each | {f"{stem}_targets.png"}


def test_released_pictures_exact_masks_and_one_of_all(tmp_path):
    reply = a_reply(2)
    written = write_answer(PHOTO, reply, output_dir=tmp_path, stem="photo")
    assert names(tmp_path) == {path.name for path in written} == names_of("photo", 2)
    for index, mask in enumerate(reply.masks(PHOTO.shape[:2])):
        exact = cv2.imread(str(tmp_path / f"photo_mask_{index}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(exact, 255 * mask.astype(np.uint8))
        released = PHOTO.copy()
        released[mask] = (0.5 * PHOTO[mask] + 0.5 * np.array([255, 0, 0])).astype(np.uint8)
        for name, picture in (("mask", mask.astype(np.uint8) * 100), ("masked_img", released)):
            write_image(tmp_path / "expected.jpg", picture)
            assert (tmp_path / f"photo_{name}_{index}.jpg").read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    reply.save(tmp_path / "expected.png", PHOTO)
    assert np.array_equal(read_image(tmp_path / "photo_targets.png"), read_image(tmp_path / "expected.png"))


def test_a_later_answer_has_a_number_and_leaves_the_first_alone(tmp_path):
    for number in (1, 2, 3):
        write_answer(PHOTO, a_reply(1), output_dir=tmp_path, stem="photo", number=number)
    assert names(tmp_path) == names_of("photo", 1) | names_of("photo_2", 1) | names_of("photo_3", 1)


@pytest.mark.parametrize("num_targets", [0, 1, 2])
def test_nothing_of_an_earlier_answer_stays_and_everything_else_does(tmp_path, num_targets):
    """Names that resemble ours are somebody's: other photos, other numbers, true masks of a data set."""
    write_answer(PHOTO, a_reply(3), output_dir=tmp_path, stem="a.b")
    write_answer(PHOTO, a_reply(3), output_dir=tmp_path, stem="a.b", number=2)
    others = names_of("axb", 3) | names_of("a.b.c", 3) | {
        *("a.b_mask_07.png", "a.b_mask_9.png", "a.b_mask_9.jpg", "a.b_masked_img_1.png", "a.b_masked_img_02.jpg"),
        *("a.b_masked_img_.jpg", "a.b_masked_img_1.jpg.bak", "a.b.jpg", "notes.txt"),
    }  # fmt: skip
    for name in others:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "a.b_masked_img_7.jpg").mkdir()
    write_answer(PHOTO, a_reply(num_targets), output_dir=tmp_path, stem="a.b")
    mine = names_of("a.b", num_targets) if num_targets else set()
    assert names(tmp_path) == mine | others | names_of("a.b_2", 3) | {"a.b_masked_img_7.jpg"}
    assert all((tmp_path / name).read_text() == "not ours" for name in others)


def test_what_an_interrupted_removal_left_goes_with_the_next_answer(tmp_path):
    write_answer(PHOTO, a_reply(3), output_dir=tmp_path, stem="photo")
    (tmp_path / "photo_mask_2.jpg").unlink()
    write_answer(PHOTO, a_reply(1), output_dir=tmp_path, stem="photo")
    assert names(tmp_path) == names_of("photo", 1)


def test_pictures_and_json_of_an_answer_wait_for_those_of_another(tmp_path):
    """Both are those of the same answer, whoever else writes into the folder."""
    where = {"output_dir": tmp_path / "vis", "output_json": str(tmp_path / "answer.json")}
    asked = {"stem": "photo", "image_path": "photo.jpg", "question": "What?"}
    with exclusive(tmp_path / "vis"):
        writing = threading.Thread(target=lambda: write_answer(PHOTO, a_reply(2), **where, **asked))
        writing.start()
        writing.join(0.2)
        assert not names(tmp_path / "vis")
        assert not (tmp_path / "answer.json").exists()
    writing.join()
    found = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert {key: found[key] for key in ("image", "prompt", "reason")} == {
        "image": "photo.jpg", "prompt": "What?", "reason": None,
    }  # fmt: skip
    keys = {"phrase", "token_span", "score", "area", "segmentation"}
    assert [set(target) for target in found["targets"]] == [keys, keys]
    codes = [target["segmentation"] for target in found["targets"]]
    assert np.array_equal(decode_rles(codes, hw=(40, 60)), a_reply(2).masks((40, 60)))
    assert names(tmp_path / "vis") == names_of("photo", 2)


def test_an_answer_that_cannot_be_written_leaves_the_earlier_one(tmp_path):
    write_answer(PHOTO, a_reply(1), output_dir=tmp_path, stem="photo")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "photo_mask_1.png").mkdir()
    with pytest.raises(InputError, match=r"photo_mask_1\.png is a folder; expected a file"):
        write_answer(255 - PHOTO, a_reply(2), output_dir=tmp_path, stem="photo")
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_files_are_named_in_a_line_each_or_in_one(tmp_path):
    reply = a_reply(2)
    reply.targets[1].mask[:] = False
    written = write_answer(PHOTO, reply, output_dir=tmp_path, stem="photo", number=2)
    long, brief = (describe(reply, written, brief=brief).splitlines() for brief in (False, True))
    assert long[:3] == brief[:3]
    assert long[1:3] == ["  [0] thing 0: 8.7% of the image, score 0.75", "  [1] thing 1: empty mask"]
    assert long[3:] == [f"{path} has been saved." for path in written]
    assert brief[3:] == [f"7 files in {tmp_path}: photo_2_..."]
    assert describe(a_reply(0), [], brief=True) == "text_output: "
