"""chat.py as the release has it: its two prompts, its file names; and ours: one question, and a JSON reply.

The model says one sentence with one target, whatever it is asked, so every answer is known.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

import chat
from tests.support.bad_input import refused
from tests.support.launch import python
from tests.support.parrot import write_parrot
from tests.support.tiny_data import draw_photo
from tests.support.tiny_network import make_network
from tests.support.tiny_world import TinyWorld
from utils.masks.rle import decode_rles

HW = (40, 60)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "a photo.jpg"
    draw_photo(path, HW)
    return path


@pytest.mark.slow
def test_the_released_conversation(parrot, photo, repository, tmp_path):
    """A prompt and an image path by turns; a wrong path is reported and the conversation goes on."""
    lines = ["What is it?", str(photo), "And this?", "/nowhere.jpg", "Again?", str(photo)]
    finished = python(
        "chat.py", f"--version={parrot}", f"--vis_save_path={tmp_path / 'vis'}", cwd=repository, stdin="\n".join(lines)
    )
    assert finished.code == 0, finished.text
    assert finished.stdout.count("Please input your prompt: ") == 4, "three questions, then the input ends"
    assert finished.stdout.count("Please input the image path: ") == 3
    assert finished.stdout.count("text_output: the thing is [0]") == 2
    assert finished.errors == ["error: image /nowhere.jpg does not exist; check the path"]
    assert "Traceback" not in finished.text
    names = {path.name for path in (tmp_path / "vis").iterdir()}
    assert names == {"a photo_mask_0.jpg", "a photo_masked_img_0.jpg", "a photo_mask_0.png", "a photo_targets.png"}


def one_shot(folder: Path, photo: Path, tmp_path: Path, *flags: str) -> dict:
    out = tmp_path / "deep/answer.json"
    where = [f"--vis_save_path={tmp_path / 'vis'}", f"--output_json={out}"]
    assert chat.main([f"--version={folder}", f"--image={photo}", "--prompt=What is it?", *where, *flags]) == 0
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_masks_in_json_and_in_pictures_are_the_same(parrot, photo, tmp_path, capsys, precision):
    reply = one_shot(parrot, photo, tmp_path, f"--precision={precision}")
    assert reply["text"] == "the thing is [SEG0] [SEG1]"
    assert reply["reason"] is None
    (target,) = reply["targets"]
    assert target["phrase"] == "thing"
    start, end = target["token_span"]
    assert reply["output_ids"][start:end] == [360, 361]
    (mask,) = decode_rles([target["segmentation"]], hw=HW)
    assert target["segmentation"]["size"] == list(HW)
    assert target["area"] == mask.sum()
    assert 0 <= target["score"] <= 1
    picture = cv2.imread(str(tmp_path / "vis/a photo_mask_0.jpg"), cv2.IMREAD_GRAYSCALE)
    assert picture.shape == HW
    assert np.abs(picture.astype(int) - 100 * mask).mean() < 10, "0 and 100, up to what JPEG does"
    exact = cv2.imread(str(tmp_path / "vis/a photo_mask_0.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(exact, 255 * mask.astype(np.uint8))
    out = capsys.readouterr().out
    assert "[0] thing: " in out
    assert "deep/answer.json has been saved." in out


def test_without_a_target_there_are_no_pictures(tiny_world: TinyWorld, photo, tmp_path, capsys):
    network, tokenizer = make_network(tiny_world.llava, scales=1, tokens=2)
    write_parrot(tmp_path / "m", network, tokenizer, "mask [SEG1] </s>", source=tiny_world.llava)
    reply = one_shot(tmp_path / "m", photo, tmp_path)
    assert reply["targets"] == []
    assert reply["reason"] == "1 segmentation tokens stood outside a complete group and were dropped"
    assert list((tmp_path / "vis").iterdir()) == []
    assert f"note: {reply['reason']}" in capsys.readouterr().out


def test_a_cut_answer_says_so(parrot, photo, tmp_path):
    reply = one_shot(parrot, photo, tmp_path, "--max_new_tokens=2")
    assert len(reply["output_ids"]) == 2
    assert "the answer was cut after 2 tokens" in reply["reason"]


def test_names_in_any_script(parrot, tmp_path):
    photo = tmp_path / "猫 ö.png"
    photo.write_bytes(cv2.imencode(".png", np.zeros((8, 20, 3), dtype=np.uint8))[1].tobytes())
    reply = one_shot(parrot, photo, tmp_path)
    assert reply["image"] == str(photo)
    assert reply["targets"][0]["segmentation"]["size"] == [8, 20]
    assert (tmp_path / "vis/猫 ö_mask_0.jpg").is_file()


def test_a_photo_whose_name_is_as_long_as_a_name_may_be(parrot, tmp_path):
    """Its pictures' names are cut, and photos whose names begin alike stay apart."""
    for last in "ab":
        photo = tmp_path / f"{'ö' * 125}{last}.jpg"
        draw_photo(photo, HW)
        one_shot(parrot, photo, tmp_path)
    names = [path.name for path in (tmp_path / "vis").iterdir()]
    assert len(names) == 8
    assert all(name.startswith("ö" * 100) for name in names)


def test_a_picture_that_cannot_be_written_leaves_none_behind(parrot, photo, tmp_path, capsys):
    (tmp_path / "vis/a photo_targets.png").mkdir(parents=True)
    flags = [f"--version={parrot}", f"--image={photo}", "--prompt=What?", f"--output_json={tmp_path / 'a.json'}"]
    refused(chat.main, [*flags, f"--vis_save_path={tmp_path / 'vis'}"], capsys, "a photo_targets.png is a folder")
    assert [path.name for path in (tmp_path / "vis").iterdir()] == ["a photo_targets.png"]
    assert not (tmp_path / "a.json").exists()


def test_bad_input_does_not_end_a_conversation(parrot, photo, tmp_path, capsys, monkeypatch):
    """A path without end, and bytes that are not UTF-8 in question and path."""
    lines = [b"What?", b"x" * 5000, b"photo\xe9?", bytes(photo), b"What?", b"photo\xe9.jpg", b"What?", bytes(photo)]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines)), encoding="utf-8"))
    assert chat.main([f"--version={parrot}", f"--vis_save_path={tmp_path / 'vis'}"]) == 0
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3, err
    assert "not UTF-8" in errors[1]
    assert out.count("text_output: ") == 1


def test_a_photo_whose_name_is_not_utf8(parrot, tmp_path):
    photo = Path(os.fsdecode(bytes(tmp_path) + b"/photo\xe9.jpg"))
    draw_photo(tmp_path / "drawn.jpg", HW)
    (tmp_path / "drawn.jpg").rename(photo)
    assert one_shot(parrot, photo, tmp_path)["image"] == str(photo)
